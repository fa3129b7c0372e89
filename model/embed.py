"""Vectors of users from histories at hand, in any Python process: no store, no Ray, no DeepSpeed.

Invariant: a history gives the vector that `score_users` would write for it, were further columns of its events missing.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import torch

from data_io.batch import collate
from data_io.columns import missing_column
from data_io.examples import history_examples
from data_io.inputs import columns_among
from data_io.schema import FIRST_INDEX, UNKNOWN_INDEX, DataContractError
from data_io.sequences import Sequences
from model.checkpoint import SavedModel
from model.engine import to_tensors

Event = tuple[str | int | None, str, datetime]
"""Item id (None: a search), action and time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def embed(saved: SavedModel, histories: Sequence[Sequence[Event]], now: datetime | None = None) -> np.ndarray:
    """Vectors [U, D] of users, float32.

    Args:
        saved: of `load_model`.
        histories: events of each user, in any order; items and actions the model does not know count as unknown.
        now: moment of prediction; events from then on are left out. None: every event counts, and a user's moment is
            just after the last one. Times without a zone are UTC.

    Raises:
        DataContractError: an item id is not of the type that ids had in the model's log.
    """
    encoder = saved.encoder
    sequences = _sequences(saved, [sorted(history, key=lambda event: _micros(event[2])) for history in histories])
    moment = None if now is None else _micros(now)
    examples = history_examples(sequences, moment, encoder.config.sequence_length)
    with torch.no_grad():
        return encoder.user_states(to_tensors(collate(sequences, examples), encoder.device)).float().cpu().numpy()


def _sequences(saved: SavedModel, histories: list[list[Event]]) -> Sequences:
    events = [event for history in histories for event in history]
    ids = saved.vocabulary.item_ids
    known = saved.manifest["actions"][: saved.encoder.config.num_actions - FIRST_INDEX]  # a store may have more by now
    columns = columns_among(saved.encoder.config.inputs)
    names = {name: index for index, name in enumerate(known, FIRST_INDEX)}
    return Sequences(
        user_id=pa.array(range(len(histories))),
        offsets=np.cumsum([0, *(len(history) for history in histories)]),
        item_index=saved.vocabulary.encode(_ids([item for item, _, _ in events], ids.type)),
        action_index=np.array([names.get(action, UNKNOWN_INDEX) for _, action, _ in events], np.int16),
        event_time=np.array([_micros(time) for _, _, time in events], np.int64),
        columns={name: missing_column(kind, len(events)) for name, kind in columns.items()},
    )


def _ids(items: list[str | int | None], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(items, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataContractError(f"item ids of this model are {kind}, as they were in its log ({error})") from None


def _micros(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)
