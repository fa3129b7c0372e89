"""What the actors of `clickformer profile` read and measure of a bucket, for the survey and for the rows alike.

Invariant: the users of a bucket and their scores stand in the same order, each once.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import ray

from data_io.buckets import read_bucket
from data_io.inputs import OwnInput
from data_io.item_facts import ItemFacts
from data_io.preferences import Events
from data_io.profiles import align_scores
from data_io.schema import EVENT_TIME, PRICE, USER_ID
from data_io.scores import EMBEDDING
from data_io.sequences import Sequences, flat_values
from data_io.signs import measure_signs
from data_io.store import SequenceStore
from model.scoring import UserBatches
from model.sharing import unpack_model
from model.surprise import can_surprise, measure_surprise
from ray_jobs.loading import find_device, known_to, with_inputs
from ray_jobs.profile_config import ProfileSettings

_BATCH_SIZE = 64
"""Users whose surprise is measured at once; memory follows the scores of a tile, not the catalogue."""


@dataclass(frozen=True, kw_only=True)
class ProfileRun:
    """What an actor needs to know; models and facts may be references to Ray's object store."""

    store: SequenceStore
    scores_url: str
    scores: dict[str, Any]
    """Manifest of the scores."""
    recommender: Any
    """A `PackedModel`: the one that embedded the users."""
    facts: ItemFacts | Any
    settings: ProfileSettings
    target_actions: list[str] | None

    @property
    def purchases(self) -> np.ndarray | None:
        """Actions that count as purchases: those that are to be predicted, else `purchase` if the log has it."""
        named = ["purchase"] if "purchase" in self.store.actions else None
        return self.store.action_indices(self.target_actions or named)

    @property
    def feature_names(self) -> list[str]:
        """Categorical columns that were declared for events."""
        declared = self.store.manifest.get("settings", {}).get("events", {}).get("features", {})
        return sorted(name for name, kind in declared.items() if kind == "categorical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A bucket as it was read, U users, and their signs."""

    events: Events
    own_price: np.ndarray | None
    """[E] prices of the events themselves; None: the log has none."""
    scores: pa.Table
    signs: dict[str, np.ndarray]
    """[U] by name (see `data_io.anomaly.SIDES`)."""

    @property
    def embeddings(self) -> np.ndarray:
        """[U, D] of the scores."""
        vectors = self.scores.column(EMBEDDING).combine_chunks()
        flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return flat.reshape(len(vectors), vectors.type.list_size)


class BucketReader:
    """Reads and measures buckets, one after the other."""

    def __init__(self, run: ProfileRun) -> None:
        self.run = run
        self.device = find_device()
        self.recommender, self.vectors = unpack_model(fetched(run.recommender), self.device)
        self.store = with_inputs(run.store, [self.recommender.encoder])
        self.facts: ItemFacts = fetched(run.facts)
        self.batches = UserBatches(_BATCH_SIZE)

    def measure(self, bucket: int, rows: np.ndarray | None = None) -> Measured:
        """A bucket with the signs of its users.

        Args:
            bucket: which one.
            rows: users whose surprise is measured; None: all.
        """
        sequences = self.store.read_sequences(bucket)
        columns = self._read_columns(bucket)
        price = columns.pop(PRICE, None)
        own_price = None if price is None else price.cast(pl.Float64).fill_null(np.nan).to_numpy()
        events = Events.of(sequences, own_price, columns, self.facts)
        scores = read_bucket(self.run.scores_url, self.run.scores, bucket)
        signs = measure_signs(events, self.facts.seller, self.run.purchases, len(self.store.actions))
        return Measured(
            events=events,
            own_price=own_price,
            scores=align_scores(sequences.user_id, scores, self.run.scores_url),
            signs=self._surprise(events, rows) | asdict(signs),
        )

    def _read_columns(self, bucket: int) -> dict[str, pl.Series]:
        """Price and declared categories of the events, as they are in the log."""
        wanted = [*([PRICE] if PRICE in self.store.event_columns else []), *self.run.feature_names]
        if not wanted:
            return {}
        table = self.store.read_rows(bucket, columns=[USER_ID, EVENT_TIME, *wanted])
        return {name: pl.Series(name, flat_values(table.column(name))[1]) for name in wanted}

    def _surprise(self, events: Events, rows: np.ndarray | None) -> dict[str, np.ndarray]:
        """[U] mean surprise, and by how much that of the recent part is above that of the part before."""
        num_users, settings, encoder = events.sequences.num_users, self.run.settings, self.recommender.encoder
        nothing = np.full(num_users, np.nan)
        if not settings.surprise_events or not can_surprise(encoder):
            return {"surprise": nothing, "surprise_shift": nothing}
        asked = OwnInput.ASKED_ACTION in encoder.config.inputs
        actions = None if asked else self.store.action_indices(self.run.target_actions)
        chosen = np.arange(num_users) if rows is None else rows
        known = known_to(encoder, events.sequences)
        found = measure_surprise(encoder, self.vectors, known, chosen, actions, settings.surprise_events, self.batches)
        return surprise_signs(events.sequences, found.place, found.nats, settings.recent_share)


def surprise_signs(
    sequences: Sequences, place: np.ndarray, nats: np.ndarray, recent_share: float
) -> dict[str, np.ndarray]:
    """[U] mean surprise of each user's judged events, and by how much that of the newest share of them is above that of
    those before; not-a-number where there are too few.

    Args:
        sequences: U users.
        place: [P] judged events, rising.
        nats: [P] their surprise.
        recent_share: of the judged events.
    """
    num_users = sequences.num_users
    user = np.searchsorted(sequences.offsets, place, side="right") - 1
    counts = np.bincount(user, minlength=num_users)
    rank = np.arange(len(place)) - (np.cumsum(counts) - counts)[user]
    recent = rank >= (counts - np.ceil(recent_share * counts).astype(np.int64))[user]

    def mean(chosen: np.ndarray, least: int) -> np.ndarray:
        total = np.bincount(user[chosen], minlength=num_users)
        sums = np.bincount(user[chosen], nats[chosen].astype(np.float64), num_users)
        return np.where(total >= least, sums / np.maximum(total, 1), np.nan)

    every = np.ones(len(place), bool)
    return {"surprise": mean(every, 1), "surprise_shift": mean(recent, _LEAST_RECENT) - mean(~recent, _LEAST_RECENT)}


_LEAST_RECENT = 4
"""Judged events of each of the two parts that are compared."""


def fetched(value: Any) -> Any:
    """What a reference to Ray's object store stands for; any other value as it is."""
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value
