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
_TINY = 1e-9
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
    itself, over their standard deviation. That comes from how much users differ, since what one user has are not
    independent draws: the variance of the mean share over the squared slope of the log-odds.

    Args:
        shares: columns user, group, term and share, as `data_io.preferences.shares_of_terms` gives them.
        segment: [N] segment of each user.
        num_segments: K.

    Source:
        Monroe et al. 2008, "Fightin' Words", Political Analysis 16(4), eq. 15, 16 and 22, on sums of shares in place of
        counts; the variance is ours.
    """
    sums = _sums(shares.with_columns(pl.Series("segment", segment[shares["user"].to_numpy()])), num_segments)
    own, other = _log_odds("inside", "num_inside"), _log_odds("outside", "num_outside")
    variance = _variance("inside", "inside_squares", "num_inside") + _variance(
        "outside", "outside_squares", "num_outside"
    )
    share, general = pl.col("inside") / pl.col("num_inside"), pl.col("all") / pl.col("num_all")
    found = sums.with_columns(
        ((own - other) / variance.sqrt()).alias("z"), share.alias("share"), (share / general).alias("lift")
    )
    clear = (pl.col("z") >= CLEAR_Z) & (pl.col("lift") >= LEAST_LIFT) & (pl.col("share") >= LEAST_SHARE)
    chosen = found.filter(clear).sort(["z", "group", "term"], descending=[True, False, False])
    columns = ["group", "term", "share", "lift", "z"]
    return [chosen.filter(pl.col("segment") == number).select(columns).to_dicts() for number in range(num_segments)]


def _sums(shares: pl.DataFrame, num_segments: int) -> pl.DataFrame:
    """Of each term in each segment that has others beside it: sums of shares and of their squares, and the number of
    users with anything of the group, in the segment and outside."""
    by, where = ["group", "term"], ["group", "segment"]
    share = pl.col("share")
    inside = shares.group_by(*by, "segment").agg(share.sum().alias("inside"), (share**2).sum().alias("inside_squares"))
    users = shares.group_by(*where).agg(pl.col("user").n_unique().alias("num_inside"))
    every = inside.select(by).unique().join(users, on="group")
    sums = every.join(inside, on=[*by, "segment"], how="left").with_columns(
        pl.col("inside", "inside_squares").fill_null(0.0)
    )
    users = users.with_columns(pl.col("num_inside").sum().over("group").alias("num_all")).drop("num_inside")
    sums = sums.join(users, on=where).with_columns(
        pl.col("inside").sum().over(by).alias("all"), pl.col("inside_squares").sum().over(by).alias("all_squares")
    )
    return sums.with_columns(
        (pl.col("all") - pl.col("inside")).alias("outside"),
        (pl.col("all_squares") - pl.col("inside_squares")).alias("outside_squares"),
        (pl.col("num_all") - pl.col("num_inside")).alias("num_outside"),
    ).filter((pl.col("num_inside") > 1) & (pl.col("num_outside") > 1) & (pl.col("segment") < num_segments))


def _log_odds(part: str, num_users: str) -> pl.Expr:
    """Log-odds of a term among the shares of some users, the prior added."""
    own = pl.col(part) + _PRIOR_STRENGTH * pl.col("all") / pl.col("num_all")
    rest = pl.col(num_users) + _PRIOR_STRENGTH - own
    return (own / pl.max_horizontal(rest, pl.lit(_TINY))).log()


def _variance(part: str, squares: str, num_users: str) -> pl.Expr:
    """Variance of the log-odds, from how much users differ."""
    mean = pl.col(part) / pl.col(num_users)
    spread = (pl.col(squares) / pl.col(num_users) - mean**2 + _TINY) / pl.col(num_users)
    prior = (pl.col(part) + _PRIOR_STRENGTH * pl.col("all") / pl.col("num_all")) / (pl.col(num_users) + _PRIOR_STRENGTH)
    return spread / pl.max_horizontal(prior * (1 - prior), pl.lit(_TINY)) ** 2


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
    return {"action": f"more {value}", "time": value, "day": value}.get(group, f"{group} {value}")


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
