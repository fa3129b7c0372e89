"""Alerts: users a person should look at, each with its kind and its reasons in words.

Thresholds are settings, and what is counted stands beside them. Invariant: a user of whom a sign is not known is not
alerted to because of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from data_io.anomaly import Reference
from data_io.quality.behaviour import ROBOT_MOMENTS_PER_HOUR, ROBOT_MOMENTS_PER_MINUTE, ROBOT_RULES

BOT: Final = "bot"
BRUSHING: Final = "brushing"
TAKEOVER: Final = "takeover"
UNUSUAL: Final = "unusual"
ALERT_KINDS: Final = (BOT, BRUSHING, TAKEOVER, UNUSUAL)
"""In the order they are listed."""
_ODD, _ODD_SHIFT = "odd_surprise", "odd_surprise_shift"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertLimits:
    """From where on a user is alerted to."""

    deviations: float
    """Robust standard deviations of surprise, and of its shift."""
    gap_variation: float
    """Variation of gaps up to which they are a clockwork's."""
    purchases: int
    """Purchases of one item, or from one seller, within 24 hours."""


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    holds: pl.Expr
    reason: pl.Expr


def _rules(limits: AlertLimits) -> list[_Rule]:
    hour, minute, day = (pl.col(rule) for rule in ROBOT_RULES)
    shift, mean, odd = (pl.col(name).round(1) for name in ("surprise_shift", "surprise", _ODD))
    item, seller = (pl.col(name).cast(pl.Int64) for name in ("item_burst", "seller_burst"))
    gaps = pl.col("gap_variation")
    as_usual = "mean surprise {} nats, {} deviations from users with as long a history"
    return [
        _Rule(BOT, hour, pl.lit(f"more than {ROBOT_MOMENTS_PER_HOUR} moments with events in an hour")),
        _Rule(BOT, minute, pl.lit(f"more than {ROBOT_MOMENTS_PER_MINUTE} moments with events in a minute")),
        _Rule(BOT, day, pl.lit("events in all 24 hours of a day")),
        _Rule(
            BOT,
            gaps <= limits.gap_variation,
            pl.format("gaps as regular as a clock's (variation {})", gaps.round(2)),
        ),
        _Rule(BRUSHING, item >= limits.purchases, pl.format("{} purchases of one item in 24 h", item)),
        _Rule(BRUSHING, seller >= limits.purchases, pl.format("{} purchases from one seller in 24 h", seller)),
        _Rule(
            TAKEOVER,
            pl.col(_ODD_SHIFT) >= limits.deviations,
            pl.format("newest events {} nats less expected than those before", shift),
        ),
        _Rule(UNUSUAL, pl.col(_ODD).abs() >= limits.deviations, pl.format(as_usual, mean, odd)),
    ]


def find_alerts(
    signs: Mapping[str, np.ndarray],
    robots: np.ndarray,
    reference: Reference,
    lengths: np.ndarray,
    limits: AlertLimits,
) -> pl.DataFrame:
    """Columns alerts and alert_reasons: lists of kinds (see `ALERT_KINDS`) and of reasons, empty for most users.

    Args:
        signs: [U] by name (see `data_io.anomaly.SIDES`).
        robots: [rules, U] who breaks which of `data_io.quality.behaviour.ROBOT_RULES`.
        reference: what others are like.
        lengths: [U] history lengths.
        limits: of the alerts.
    """
    odd = {f"odd_{name}": reference.deviation(name, signs[name], lengths) for name in ("surprise", "surprise_shift")}
    numbers = pl.DataFrame({**signs, **odd}).with_columns(pl.all().cast(pl.Float64).fill_nan(None))
    frame = numbers.with_columns(*(pl.Series(rule, broken) for rule, broken in zip(ROBOT_RULES, robots, strict=True)))
    rules = _rules(limits)
    kinds = [pl.when(rule.holds).then(pl.lit(rule.kind)) for rule in rules]
    return frame.select(
        pl.concat_list(kinds).list.drop_nulls().list.unique(maintain_order=True).alias("alerts"),
        pl.concat_list(pl.when(rule.holds).then(rule.reason) for rule in rules)
        .list.drop_nulls()
        .alias("alert_reasons"),
    )


def count_alerts(alerts: pl.Series) -> dict[str, int]:
    """Users by kind of alert, of a column of lists."""
    counts = dict(alerts.explode(empty_as_null=False).drop_nulls().value_counts().iter_rows())
    return {kind: int(counts.get(kind, 0)) for kind in ALERT_KINDS}
