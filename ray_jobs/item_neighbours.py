"""Items that the same users had: where item vectors start, and which neighbours are mixed into rankings."""

import time
from dataclasses import replace

from data_io.config import SettingsError
from data_io.splits import Split
from data_io.store import SequenceStore
from model.config import NeighbourItems
from model.neighbour_choice import make_table
from model.spectral import spectral_vectors
from ray_jobs.baseline_passes import count_history, find_neighbours
from ray_jobs.config import Settings
from ray_jobs.learning import StoreIndex
from ray_jobs.progress import say


def with_neighbours(settings: Settings, store: SequenceStore, split: Split, index: StoreIndex) -> StoreIndex:
    """The index with what pretraining needs of neighbours, by pairs of items in training history; in a Ray session.

    Raises:
        SettingsError: there are more pairs than the settings allow.
    """
    start, num_chosen = settings.pretrain.item_vectors, settings.encoder.neighbours
    num_looked_at = start.num_neighbours if isinstance(start, NeighbourItems) else 0
    if not num_looked_at and not num_chosen:
        return index
    began = time.monotonic()
    counts = count_history(store, split, settings.evaluation.recent_days)
    if counts.num_pairs > settings.pretrain.max_pairs:
        raise SettingsError(
            f"users had {counts.num_pairs:,} pairs of items together, more than pretrain.max_pairs "
            f"{settings.pretrain.max_pairs:,}: raise it, or set pretrain.item_vectors to kind random and "
            "encoder.neighbours to 0"
        )
    neighbours = find_neighbours(store, split, counts, max(num_looked_at, num_chosen))
    if num_looked_at:
        vectors = spectral_vectors(neighbours, settings.encoder.hidden_size, settings.seed)
        index = replace(index, item_vectors=vectors)
    if num_chosen:
        index = replace(index, neighbours=make_table(neighbours, num_chosen))
    say(f"pretrain: {len(neighbours.item_index):,} pairs of neighbours ({time.monotonic() - began:.0f} s)")
    return index
