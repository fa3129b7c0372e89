"""A check that nothing an example is told stems from what follows its moment of prediction.

It does not trust the code that makes batches: it deletes the future and makes them again. Invariant: what is compared
is everything a network is given, save the labels.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np

from data_io.batch import Batch
from data_io.examples import Examples
from data_io.schema import DataContractError
from data_io.sequences import Sequences

MakeBatch = Callable[[Sequences, Examples], Batch]
_MOST_CHECKED = 64


def check_no_leak(sequences: Sequences, examples: Examples, make_batch: MakeBatch, labels: Collection[str]) -> None:
    """Fail if a batch changes when every event from its examples' moment on is deleted.

    Args:
        sequences: of a bucket.
        examples: of which some are checked, moment by moment.
        make_batch: what a network is given of examples.
        labels: names of what may know the future.

    Raises:
        DataContractError: a tensor differs; the message names it and a user.
    """
    for moment in np.unique(examples.now):
        part = examples.take(np.flatnonzero(examples.now == moment)[:_MOST_CHECKED])
        past = _until(sequences, int(moment))
        there = make_batch(sequences, part)
        alone = make_batch(past, _moved(sequences, past, part))
        for name in there.keys() - set(labels):
            if np.array_equal(there[name], alone[name]):
                continue
            user = sequences.user_id[int(part.row[_first_other(there[name], alone[name])])].as_py()
            raise DataContractError(
                f"leak: {name} of user {user} at {np.datetime64(int(moment), 'us')} UTC is another one without the "
                "events that follow; nothing may be trained on this"
            )


def _first_other(there: np.ndarray, alone: np.ndarray) -> int:
    """The first example that differs; of arrays of another width the first."""
    if there.shape != alone.shape:
        return 0
    return int(np.flatnonzero((there != alone).reshape(len(there), -1).any(axis=1))[0])


def _until(sequences: Sequences, moment: int) -> Sequences:
    """The same users without events from a moment on."""
    kept = sequences.event_time < moment
    offsets = np.concatenate([[0], np.cumsum(kept)])[sequences.offsets]
    columns = {name: replace(column, code=column.code[kept]) for name, column in sequences.columns.items()}
    return Sequences(
        user_id=sequences.user_id,
        offsets=offsets,
        item_index=sequences.item_index[kept],
        action_index=sequences.action_index[kept],
        event_time=sequences.event_time[kept],
        columns=columns,
        numbers={name: values[kept] for name, values in sequences.numbers.items()},
    )


def _moved(sequences: Sequences, past: Sequences, examples: Examples) -> Examples:
    """The same spans among the events that are left; what lay in the future is cut off."""
    begin, left = sequences.starts[examples.row], past.starts[examples.row]
    last = past.ends[examples.row]
    start, end = (np.minimum(left + place - begin, last) for place in (examples.start, examples.end))
    return replace(examples, start=start, end=end)
