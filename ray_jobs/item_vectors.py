"""Where item vectors start: near those of other items that the same users had, if the settings say so."""

import time
from dataclasses import replace

from data_io.splits import Split
from data_io.store import SequenceStore
from model.config import NeighbourItems
from model.spectral import spectral_vectors
from ray_jobs.baseline_passes import count_history, find_neighbours
from ray_jobs.config import Settings
from ray_jobs.learning import StoreIndex
from ray_jobs.progress import say


def with_item_vectors(settings: Settings, store: SequenceStore, split: Split, index: StoreIndex) -> StoreIndex:
    """The index with the vectors that items start from, by pairs of items in training history; needs a Ray session."""
    options = settings.pretrain.item_vectors
    if not isinstance(options, NeighbourItems):
        return index
    began = time.monotonic()
    counts = count_history(store, split, settings.evaluation.recent_days)
    if counts.num_pairs > options.max_pairs:
        say(
            f"pretrain: item vectors start at random: users had {counts.num_pairs:,} pairs of items together, more "
            f"than pretrain.item_vectors.max_pairs {options.max_pairs:,}"
        )
        return index
    neighbours = find_neighbours(store, split, counts, options.num_neighbours)
    vectors = spectral_vectors(neighbours, settings.encoder.hidden_size, settings.seed)
    say(
        f"pretrain: item vectors start from {len(neighbours.item_index):,} pairs of neighbours "
        f"({time.monotonic() - began:.0f} s)"
    )
    return replace(index, item_vectors=vectors)
