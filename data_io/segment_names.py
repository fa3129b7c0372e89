"""Names of segments: what users of a segment have more often than other users, in words.

Users count alike: what a user has is shares that add up to 1, so that a hundred baskets of one user do not name a
segment. Invariant: a term is named only where it is over-represented both clearly (z) and by much (lift).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

CLEAR_Z = 3.0
"""Standard deviations of the log-odds from which a term is clear."""
LEAST_LIFT = 1.15
"""Share over that of all users from which a term is told."""
LEAST_SHARE = 0.005
"""Share of a segment below which a term is too rare to name it."""
_PRIOR_STRENGTH = 50.0
"""Users that the prior, which is all users, is worth."""
_NAMED_CATEGORIES = 2
_MUCH_MORE, _MUCH_LESS = 1.5, 1 / 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    """What describes one segment; JSON content by `dataclasses.asdict`."""

    name: str
    share: float
    """Of the sampled users."""
    median_events: float
    median_recency_days: float
    terms: list[dict[str, Any]]
    """Over-represented terms, clearest first: group, term, share, lift and z."""


def over_represented(shares: pl.DataFrame, segment: np.ndarray, num_segments: int) -> list[list[dict[str, Any]]]:
    """Terms that users of each segment have clearly more often than all others.

    Log-odds ratios of a segment against all other users with an informative Dirichlet prior, each group of terms by
    itself, over their estimated standard deviation.

    Args:
        shares: columns user, group, term and share, as `data_io.preferences.shares_of_terms` gives them.
        segment: [N] segment of each user.
        num_segments: K.

    Source:
        Monroe et al. 2008, "Fightin' Words", Political Analysis 16(4), eq. 15, 16, 18 and 22, on sums of shares in
        place of counts.
    """
    by_user = shares.with_columns(pl.Series("segment", segment[shares["user"].to_numpy()]))
    inside = by_user.group_by("group", "term", "segment").agg(pl.col("share").sum().alias("inside"))
    terms = inside.group_by("group", "term").agg(pl.col("inside").sum().alias("all"))
    every = terms.join(pl.DataFrame({"segment": np.arange(num_segments, dtype=segment.dtype)}), how="cross")
    sums = every.join(inside, on=["group", "term", "segment"], how="left").fill_null(0.0)
    sums = sums.with_columns(
        pl.col("inside").sum().over("group", "segment").alias("segment_total"),
        pl.col("all").sum().over("group", "segment").alias("total"),
    )
    prior = _PRIOR_STRENGTH * pl.col("all") / pl.col("total")
    outside, outside_total = pl.col("all") - pl.col("inside"), pl.col("total") - pl.col("segment_total")
    own, other = pl.col("inside") + prior, outside + prior
    own_rest = pl.col("segment_total") + _PRIOR_STRENGTH - own
    other_rest = outside_total + _PRIOR_STRENGTH - other
    tiny = 1e-9
    delta = (own / (own_rest + tiny)).log() - (other / (other_rest + tiny)).log()
    share, general = pl.col("inside") / (pl.col("segment_total") + tiny), pl.col("all") / pl.col("total")
    found = sums.with_columns(
        (delta / (1 / own + 1 / other).sqrt()).alias("z"), share.alias("share"), (share / general).alias("lift")
    )
    clear = (pl.col("z") >= CLEAR_Z) & (pl.col("lift") >= LEAST_LIFT) & (pl.col("share") >= LEAST_SHARE)
    chosen = found.filter(clear).sort(["z", "group", "term"], descending=[True, False, False])
    columns = ["group", "term", "share", "lift", "z"]
    return [chosen.filter(pl.col("segment") == number).select(columns).to_dicts() for number in range(num_segments)]


def describe_segments(
    shares: pl.DataFrame, segment: np.ndarray, num_events: np.ndarray, recency_days: np.ndarray, num_segments: int
) -> list[SegmentFacts]:
    """Names and figures of K segments, of a sample of N users.

    Args:
        shares: as for `over_represented`.
        segment, num_events, recency_days: [N] of each user.
        num_segments: K.
    """
    terms = over_represented(shares, segment, num_segments)
    facts, taken = [], set[str]()
    usual = (_median(num_events), _median(recency_days))
    for number in range(num_segments):
        own = segment == number
        events, recency = _median(num_events[own]), _median(recency_days[own])
        name = name_segment(terms[number], (events, recency), usual)
        name = name if name not in taken else f"{name} ({number + 1})"
        taken.add(name)
        facts.append(
            SegmentFacts(
                name=name,
                share=float(own.mean()) if len(own) else 0.0,
                median_events=events,
                median_recency_days=recency,
                terms=terms[number],
            )
        )
    return facts


def name_segment(terms: list[dict[str, Any]], own: tuple[float, float], usual: tuple[float, float]) -> str:
    """A name from how active users are, from the categories they have clearly more often, and from what else they do.

    Args:
        terms: of the segment, clearest first.
        own: median number of events, and median days since the last one, of the segment.
        usual: the same of all users.
    """
    words = [_activity(own, usual)]
    categories = [term["term"].lower() for term in terms if term["group"] == "category"]
    words += [", ".join(categories[:_NAMED_CATEGORIES])] if categories else []
    others = [_phrase(term) for term in terms if term["group"] != "category"]
    words += others[: 1 if categories else _NAMED_CATEGORIES]
    return "; ".join(word for word in words if word) or "like all users"


def _activity(own: tuple[float, float], usual: tuple[float, float]) -> str:
    words = []
    if own[1] > max(_MUCH_MORE * 2 * usual[1], usual[1] + 1):
        words.append("lapsed")
    if own[0] >= _MUCH_MORE * usual[0]:
        words.append("frequent")
    if own[0] <= _MUCH_LESS * usual[0]:
        words.append("occasional")
    return ", ".join(words)


def _phrase(term: dict[str, Any]) -> str:
    group, value = term["group"], term["term"]
    return {"action": f"more {value}", "time": f"{value}s", "day": value}.get(group, f"{group} {value}")


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
