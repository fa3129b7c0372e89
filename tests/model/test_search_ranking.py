"""BM25 against a loop, and the order of what is blended."""

from collections import Counter
from math import log

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from model.relevance import K1, B, Relevance, item_texts
from model.search_ranking import blend, order_candidates

TEXTS = ["Red shoes", "red RED lamp", "the lamp, for kids", "", "blue shoes of blue leather"]


def naive(query: list[str], texts: list[str]) -> list[float]:
    """BM25 word by word."""
    documents = [[word for word in text.lower().replace(",", "").split() if word not in ("the", "for", "of")]
                 for text in texts]  # fmt: skip
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for word in query:
            holding = sum(word in other for other in documents)
            rarity = log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            damped = counts[word] + K1 * (1 - B + B * len(document) / mean)
            score += rarity * counts[word] * (K1 + 1) / damped if counts[word] else 0.0
        scores.append(score)
    return scores


def test_bm25_is_that_of_a_loop() -> None:
    found = Relevance(pl.Series(TEXTS)).scores(pa.array(["red lamp", "Blue, the shoes!", None, "unheard of"]))
    expected = [naive(query, TEXTS) for query in (["red", "lamp"], ["blue", "shoes"], [], ["unheard"])]
    assert found.shape == (4, len(TEXTS) + 2)
    assert not found[:, :2].any(), "padding and unknown have no words"
    np.testing.assert_allclose(found[:, 2:], expected, rtol=1e-5)


def test_a_catalogue_without_words_scores_nothing() -> None:
    assert Relevance(pl.Series(["", ""])).scores(pa.array(["red"])).tolist() == [[0, 0, 0, 0]]
    assert Relevance(pl.Series([], dtype=pl.String)).scores(pa.array(["red"])).tolist() == [[0, 0]]


def test_what_is_said_of_an_item_is_its_title_category_and_brand() -> None:
    items = pa.table({"price": [1.0, 2.0], "brand": ["Lee", None], "category": [["Garden", "Tools"], None]})
    assert item_texts(items).to_list() == ["Garden Tools Lee", " "]
    assert item_texts(pa.table({"price": [1.0]})).to_list() == [""]


@pytest.mark.parametrize(("weight", "expected"), [(0.0, [2.0, 1.0]), (2.0, [0.0, 0.5])])
def test_blending_adds_and_leaves_unknown_items_out(weight: float, expected: list[float]) -> None:
    scores = blend(torch.tensor([[2.0, 1.0, 9.0]]), torch.tensor([[-1.0, -0.25, -torch.inf]]), weight)
    assert scores.tolist() == [[*expected, -np.inf]]


def test_candidates_go_by_score_then_unknown_ones_by_relevance() -> None:
    search = np.array([1, 0, 0, 0, 0, 0])
    score = np.array([0.5, np.nan, 1.0, np.nan, 2.0, 1.0])
    relevance = np.array([0.0, 1.0, 0.0, 3.0, 0.0, 0.0])
    assert order_candidates(search, score, relevance).tolist() == [4, 2, 5, 3, 1, 0]
