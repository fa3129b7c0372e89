"""The 100 best of a whole catalogue for each user: the ranker against torch's matmul and topk, and against faiss.

All sides take the same vectors and as many threads as there are cores, in turns; figures are medians. The limit is what
the machine's largest matrix products reach, spent on dot products alone. Lists are compared with those of brute force,
once with real vectors and once with whole numbers, whose many ties must come in the order of the items. Needs faiss:
pip install 'clickformer[benchmarks]'.
Usage: python -m tests.benchmarks.score_users [--quick]
"""

import os
from collections.abc import Callable

import faiss
import numpy as np
import torch

from data_io.schema import FIRST_INDEX
from model.queries import pure_queries
from model.ranker import Ranker
from model.topk import top_k
from tests.benchmarks.harness import compare, finish, is_quick

_K = 100
_AT_ONCE = 256
"""Users whose scores torch holds in memory: of 100 thousand items 100 MB."""
_OVER_TORCH, _OVER_FAISS = 2.0, 1.2
_ROUNDS = 5


def main() -> None:
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    cases = [(100_000, 64), (100_000, 128)] if is_quick() else [(v, d) for v in (100_000, 1_000_000) for d in (64, 128)]
    print(f"{threads} threads; users a second, median of {_ROUNDS} rounds in turns")
    print("     items width    torch    faiss     ours  /torch  /faiss    limit share")
    figures: dict[str, float] = {}
    for num_items, width in cases:
        rates = measure(num_items, width, threads)
        over_torch, over_faiss = rates["ours"] / rates["torch"], rates["ours"] / rates["faiss"]
        print(
            f"{num_items:>10,} {width:>5} {rates['torch']:>8,.0f} {rates['faiss']:>8,.0f} {rates['ours']:>8,.0f} "
            f"{over_torch:>7.2f} {over_faiss:>7.2f} {rates['limit']:>8,.0f} {rates['ours'] / rates['limit']:>5.0%}",
            flush=True,
        )
        figures |= {f"over_torch_{num_items}_{width}": over_torch, f"over_faiss_{num_items}_{width}": over_faiss}
    exact = is_exact(whole=False) and is_exact(whole=True)
    print(f"lists equal brute force, ties among them: {'yes' if exact else 'no'}")
    over_torch, over_faiss = (
        min(value for name, value in figures.items() if name.startswith(f"over_{side}_100000_"))
        for side in ("torch", "faiss")
    )
    ok = exact and over_torch >= _OVER_TORCH and over_faiss >= _OVER_FAISS
    print(f"bar at 100,000 items: {_OVER_TORCH} times torch, {_OVER_FAISS} times faiss, and exact")
    finish("score_users", figures | {"exact": float(exact)}, _OVER_TORCH, ok=ok)


def measure(num_items: int, width: int, threads: int) -> dict[str, float]:
    """Users a second of each side."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(num_items + FIRST_INDEX, width, generator=generator)
    users = torch.randn(2048 if num_items <= 100_000 else 512, width, generator=generator)
    index = faiss.IndexFlatIP(width)
    index.add(items[FIRST_INDEX:].numpy())
    ranker, queries = Ranker(items, num_threads=threads), pure_queries(users)

    def by_torch() -> object:
        return [torch.topk(part @ items[FIRST_INDEX:].T, _K) for part in users.split(_AT_ONCE)]

    sides: dict[str, Callable[[], object]] = {
        "torch": by_torch,
        "faiss": lambda: index.search(users.numpy(), _K),
        "ours": lambda: ranker.rank(queries, _K),
        "limit": lambda: _products(threads),
    }
    timings = compare(sides, _ROUNDS)
    flops = 2 * _SIDE**3 / timings.pop("limit").median
    rates = {name: len(users) / timing.median for name, timing in timings.items()}
    return rates | {"limit": flops / (2 * width * num_items)}


_SIDE = 2048
_SQUARES = (torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE))


def _products(threads: int) -> torch.Tensor:
    torch.set_num_threads(threads)
    return _SQUARES[0] @ _SQUARES[1]


def is_exact(*, whole: bool) -> bool:
    """Whether lists and scores equal those of ranking all scores."""
    generator = torch.Generator().manual_seed(1)
    shape = {"items": (20_000 + FIRST_INDEX, 64), "users": (200, 64)}
    items, users = (torch.randn(size, generator=generator) for size in shape.values())
    if whole:
        items, users = items.round(), users.round()
    found = Ranker(items).rank(pure_queries(users), _K)
    scores = users @ items.T
    scores[:, :FIRST_INDEX] = -torch.inf
    best, expected = top_k(scores, _K)
    same_items = np.array_equal(np.sort(found.item, axis=1), np.sort(expected.numpy(), axis=1))
    in_order = np.array_equal(found.item, expected.numpy()) or not whole
    logs = (best.double() - scores.double().logsumexp(dim=1, keepdim=True)).numpy()
    return bool(same_items and in_order and np.allclose(found.score, logs, atol=1e-4))


if __name__ == "__main__":
    main()
