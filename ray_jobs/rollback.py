"""The job that lets readers see the scores from before again; nothing is computed.

The snapshot before the newest is published once more, as a newest one: a reader sees either, whole.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":
    run_job("rollback")

from data_io import storage
from data_io.lease import write_lease
from data_io.schema import DataContractError
from data_io.snapshots import older_manifests, publish_manifest, published_manifest
from ray_jobs.config import Settings
from ray_jobs.progress import say


def run(settings: Settings) -> str:
    """Go back to the scores that were published before those readers see; returns their fingerprint."""
    url = storage.absolute(settings.place("scores"))
    with write_lease(url, "rollback") as lease:
        newest = published_manifest(url)
        if newest is None:
            raise DataContractError(f"{url}: nothing is published here; run clickformer score_users first")
        before = next(
            (old for old in older_manifests(url, newest) if old["fingerprint"] != newest["fingerprint"]), None
        )
        if before is None:
            raise DataContractError(
                f"{url}: no scores from before are kept; scoring.retain_hours says how long they are"
            )
        lease.check()
        publish_manifest(url, before, after=newest)
    say(f"rollback: readers see the scores of {before['published_at']} again ({before['fingerprint']})")
    return str(before["fingerprint"])
