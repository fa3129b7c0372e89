"""A driver for `test_killed_scoring`: scores on two nodes, of which one is lost in the middle (T3).

Run as `python -m tests.faults.lost_scoring_node FOLDER`, alone in its process: it has a Ray cluster of its own.
"""

import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ray_jobs import score_users
from tests.faults.scoring_shop import make_settings, marks_of


def lose_node(cluster: Cluster, node: object, folder: Path, lost: list[int]) -> None:
    """End a node without a warning once some buckets are done."""
    while not marks_of(folder):
        time.sleep(0.005)
    lost.append(len(marks_of(folder)))
    cluster.remove_node(node, allow_graceful=False)  # pyright: ignore


def main(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(address=cluster.address)
    lost: list[int] = []
    try:
        harm = threading.Thread(target=lose_node, args=(cluster, node, folder, lost))
        harm.start()
        score_users.run(make_settings(folder))
        harm.join()
        (folder / "lost").write_text(str(lost[0]))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
