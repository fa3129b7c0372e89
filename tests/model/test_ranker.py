"""The ranker against ranking everything by plain sorting, and rules against a naive filter."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.schema import FIRST_INDEX
from model import scan
from model.eligibility import NO_RULES, ItemRules, Pairs, Personal, Scanned, make_pairs, make_personal
from model.queries import Queries, pure_queries, with_choices
from model.ranker import Ranker, Ranking
from model.row_scan import scan_on_gpu, two_stage_top_k
from model.scan import scan_on_cpu
from model.topk import top_k

NUM_RULES = 4
CAP = 3


def whole_numbers(rng: np.random.Generator, *shape: int, span: int = 3) -> torch.Tensor:
    """Vectors whose products are exact, so that ties are ties."""
    return torch.from_numpy(rng.integers(-span, span + 1, shape).astype(np.float32))


def make_rules(rng: np.random.Generator, num_items: int, num_classes: int, share: float, most: int) -> ItemRules:
    denied = np.where(rng.random((num_classes, num_items)) < share, rng.integers(1, 4, (num_classes, num_items)), 0)
    boosted_by = np.where(rng.random((num_classes, num_items)) < 0.2, 4, 0).astype(np.uint32)
    boosted_by[:, :FIRST_INDEX] = 0
    return ItemRules(
        num_rules=NUM_RULES,
        denied=denied.astype(np.uint32),
        boost=np.where(boosted_by > 0, np.float32(2.0), np.float32(0)),
        boosted_by=boosted_by,
        group=rng.integers(-1, 4, num_items).astype(np.int32) if most else np.zeros(0, np.int32),
        most_of_group=most,
        cap=CAP,
    )


def naive(queries: Queries, items: torch.Tensor, k: int, kinds: np.ndarray, pairs: Pairs, rules: ItemRules) -> Ranking:
    """Every item of every user looked at, one after the other."""
    scores = (queries.users.double() @ items.double().T).float()
    scores[:, :FIRST_INDEX] = -torch.inf
    logs = queries.log_probabilities(scores.double()).numpy()
    out = {(int(row), int(item)): int(by) for row, item, by in zip(*pairs, strict=True)}
    num_users = len(scores)
    found = Ranking(
        np.zeros((num_users, k), np.int32), np.full((num_users, k), -np.inf, np.float32), np.zeros(num_users, np.uint32)
    )
    for user in range(num_users):
        kind, listed, kept_out, capped = kinds[user], [], [], False
        boost = rules.boost[kind] if len(rules.boost) else np.zeros(len(items))
        in_order = sorted(
            range(FIRST_INDEX, len(items)), key=lambda item: (-round(logs[user, item] + boost[item], 6), item)
        )
        counts: dict[int, int] = {}
        for item in in_order:
            if len(listed) == k:
                break
            by = int(rules.denied[kind, item]) if len(rules.denied) else 0
            by |= out.get((user, item), 0)
            if by or (user, item) in out:
                kept_out.append((logs[user, item] + boost[item], by))
                continue
            group = int(rules.group[item]) if len(rules.group) else -1
            if group >= 0 and counts.get(group, 0) == rules.most_of_group:
                capped = True
                continue
            counts[group] = counts.get(group, 0) + 1
            listed.append(item)
        found.item[user, : len(listed)] = listed
        found.score[user, : len(listed)] = logs[user, listed] + boost[listed]
        acted = (1 << rules.cap) if capped else 0
        for score, by in kept_out:
            acted |= by if score > found.score[user, -1] + 1e-5 else 0
        if len(rules.boosted_by):
            acted |= int(np.bitwise_or.reduce(rules.boosted_by[kind, listed], initial=0))
        found.acted[user] = acted
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_items=st.integers(3, 300),
    k=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.3, 0.95]),
    most=st.sampled_from([0, 1, 3]),
    mixes=st.booleans(),
    num_threads=st.sampled_from([1, 2]),
)
def test_a_list_is_what_a_naive_filter_over_the_ranked_catalogue_leaves(
    seed: int, num_items: int, k: int, share: float, most: int, mixes: bool, num_threads: int
) -> None:
    rng = np.random.default_rng(seed)
    items, users = whole_numbers(rng, num_items, 4), whole_numbers(rng, 5, 4)
    kinds = rng.integers(0, 2, 5)
    rules = make_rules(rng, num_items, 2, share, most)
    row, item = rng.integers(0, 5, 30), rng.integers(FIRST_INDEX, num_items, 30)
    pairs = make_pairs(row, item, rng.integers(0, 3, 30).astype(np.uint32))
    queries = pure_queries(users)
    if mixes:
        chosen = torch.from_numpy(rng.integers(FIRST_INDEX, num_items, (5, 6)))
        weight = torch.from_numpy(rng.random((5, 6)).astype(np.float32)) * 0.1
        queries = with_choices(queries, torch.log1p(-weight.sum(dim=1)), chosen, weight)
    found = Ranker(items, rules, num_threads).rank(queries, k, make_personal(5, kinds, pairs))
    expected = naive(queries, items, k, kinds, pairs, rules)
    np.testing.assert_allclose(found.score, expected.score, atol=2e-5)
    different = found.item != expected.item
    assert not different.any() or mixes, "ties aside, which rounding breaks where several ways are added up"
    if not mixes:
        np.testing.assert_array_equal(found.acted, expected.acted)
    assert (found.item[np.isfinite(found.score)] >= FIRST_INDEX).all()


@pytest.mark.parametrize("k", [1, 7, 100, 3_000])
@pytest.mark.parametrize("span", [1, 1000], ids=["ties", "few ties"])
def test_all_scans_equal_sorting_everything(k: int, span: int) -> None:
    rng = np.random.default_rng(0)
    items, users = whole_numbers(rng, 2_500, 3, span=span), whole_numbers(rng, 9, 3, span=span)
    scores = users @ items.T
    scores[:, :FIRST_INDEX] = -torch.inf
    expected = scores.sort(dim=1, descending=True, stable=True)
    k = min(k, len(items) - FIRST_INDEX)
    expected_items = expected.indices[:, :k].sort(dim=1).values
    for scanned in (
        scan_on_cpu(users, items, k, make_personal(9), NO_RULES, (4, 1024)),
        scan_on_gpu(users, items, k, make_personal(9), NO_RULES, 16),
    ):
        np.testing.assert_array_equal(scanned.item, expected_items)
        np.testing.assert_array_equal(scanned.score, scores.gather(1, expected_items))
        np.testing.assert_allclose(scanned.normaliser, scores.double().logsumexp(dim=1), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_items=st.integers(3, 200),
    k=st.integers(1, 20),
    share=st.sampled_from([0, 0.5]),
    most=st.sampled_from([0, 2]),
)
def test_both_scans_find_the_same(seed: int, num_items: int, k: int, share: float, most: int) -> None:
    rng = np.random.default_rng(seed)
    items, users = whole_numbers(rng, num_items, 4), whole_numbers(rng, 6, 4)
    rules, kinds = make_rules(rng, num_items, 2, share, most), rng.integers(0, 2, 6)
    row, item = rng.integers(0, 6, 20), rng.integers(FIRST_INDEX, num_items, 20)
    pairs = make_pairs(row, item, rng.integers(0, 3, 20).astype(np.uint32))
    k = min(k, num_items - FIRST_INDEX)
    full = rng.random((6, 4)) < 0.3 if most else np.zeros((6, 0), bool)
    personal = Personal(kinds, pairs, full)
    here = scan_on_cpu(users, items, k, personal, rules, (4, 1024))
    there = scan_on_gpu(users, items, k, personal, rules, 16)
    np.testing.assert_array_equal(here.item, there.item)
    np.testing.assert_array_equal(here.score, there.score)
    beats = np.isneginf(here.score[:, -1:]) | (there.kept_out > here.score.min(axis=1, keepdims=True))
    np.testing.assert_array_equal(np.where(beats, here.kept_out, 0), np.where(beats, there.kept_out, 0))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num_items=st.integers(1, 400), k=st.integers(1, 50), group=st.sampled_from([2, 16]))
def test_two_stages_are_exact_with_ties(seed: int, num_items: int, k: int, group: int) -> None:
    scores = whole_numbers(np.random.default_rng(seed), 4, num_items)
    k = min(k, num_items)
    for found, expected in zip(two_stage_top_k(scores, k, group), top_k(scores, k), strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("guess", [-50.0, 7_000.0, 9_000.0, 1e9])
def test_a_guess_that_is_too_high_costs_a_scan_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, guess: float
) -> None:
    rng = np.random.default_rng(0)
    items, users = whole_numbers(rng, 9_000, 6, span=50), whole_numbers(rng, 40, 6, span=50)
    rules = make_rules(rng, len(items), 2, 0.3, 0)
    pairs = make_pairs(rng.integers(0, 40, 300), rng.integers(FIRST_INDEX, 9_000, 300), np.ones(300, np.uint32))
    what = items, 20, make_personal(40, rng.integers(0, 2, 40), pairs), rules, (16, 1024)
    monkeypatch.setattr(scan._Scan, "_guess", lambda _, users, __: np.full(len(users), -np.inf, np.float32))
    expected = scan_on_cpu(users, *what)
    asked: list[int] = []
    above = scan._Scan._above

    def counted(self: scan._Scan, threshold: np.ndarray, *args: Any) -> Scanned:
        asked.append(len(threshold))
        return above(self, threshold, *args)

    monkeypatch.setattr(scan._Scan, "_guess", lambda _, users, __: np.full(len(users), guess, np.float32))
    monkeypatch.setattr(scan._Scan, "_above", counted)
    found = scan_on_cpu(users, *what)
    short = int((expected.score.min(axis=1) <= guess).sum())
    assert sum(asked) == 40 + short
    for one, other in zip(found, expected, strict=True):
        beats = one > expected.score.min(axis=1, keepdims=True) if one is found.kept_out else np.ones_like(one, bool)
        np.testing.assert_array_equal(one[beats], other[beats])


def test_what_a_user_gets_does_not_depend_on_who_is_beside() -> None:
    generator = torch.Generator().manual_seed(0)
    items, users = torch.randn(5_000, 16, generator=generator), torch.randn(40, 16, generator=generator)
    ranker = Ranker(items)
    together, alone = ranker.rank(pure_queries(users), 20), ranker.rank(pure_queries(users[7:8]), 20)
    np.testing.assert_array_equal(together.item[7:8], alone.item)
    np.testing.assert_allclose(together.score[7:8], alone.score, atol=1e-5)


def test_k_beyond_the_catalogue_and_no_item_at_all() -> None:
    users = torch.ones(2, 3)
    few = Ranker(torch.ones(4, 3)).rank(pure_queries(users), 10)
    assert few.item[:, :2].tolist() == [[2, 3]] * 2
    assert np.isneginf(few.score[:, 2:]).all()
    assert np.isneginf(Ranker(torch.ones(2, 3)).rank(pure_queries(users), 5).score).all()


def test_scores_are_log_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    items, users = torch.randn(3_000, 8, generator=generator), torch.randn(3, 8, generator=generator)
    found = Ranker(items).rank(pure_queries(users), 2_998)
    np.testing.assert_allclose(np.exp(found.score).sum(axis=1), 1, rtol=1e-5)
