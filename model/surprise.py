"""Surprise: how unlikely a causal encoder held each thing a user did before it was done.

The probability is that of the whole mixture (softmax, repeats, neighbours), over the whole catalogue, as rankings have
it. Invariant: the surprise of an event depends on the user's earlier events, on when it came and, where the encoder is
asked by action, on its action; never on its item or on later events.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_io.batch import ASKED_ACTION, ITEM_INDEX, PADDING_MASK
from data_io.examples import Examples, history_examples
from data_io.inputs import OwnInput
from data_io.schema import FIRST_INDEX
from data_io.sequences import Sequences
from model.encoder import ClickformerEncoder, TensorBatch, choosable_events, event_inputs
from model.engine import to_tensors
from model.losses import dot, log_partition
from model.queries import Queries, pure_queries
from model.repeat import choose_again
from model.scoring import UserBatches


@dataclass(frozen=True, slots=True)
class Surprise:
    """The surprise of P events of a bucket."""

    place: np.ndarray
    """[P] places of the events among the bucket's, rising."""
    nats: np.ndarray
    """[P] minus the natural log of the probability of the event's item."""


def can_surprise(encoder: ClickformerEncoder) -> bool:
    """Whether an encoder says at each event what comes next, which one that looks at both sides does not."""
    return encoder.config.attention == "causal"


def measure_surprise(
    encoder: ClickformerEncoder,
    vectors: Tensor,
    sequences: Sequences,
    rows: np.ndarray,
    actions: np.ndarray | None,
    num_events: int,
    batches: UserBatches,
) -> Surprise:
    """The surprise of the newest events of some users.

    Args:
        encoder: causal.
        vectors: [V, D] of its items, as states are held against them.
        sequences: of a bucket, as the encoder knows them.
        rows: users to look at.
        actions: action indices whose events are judged; None: all.
        num_events: newest events of a user that may be judged; a user's very first never is.
        batches: of users.
    """
    whole = history_examples(sequences, None, encoder.config.sequence_length + 1).take(rows)
    whole = whole.take(np.flatnonzero(whole.end - whole.start >= 2))
    whole = whole.take(np.argsort(whole.start - whole.end, kind="stable"))
    inputs = Examples(
        row=whole.row,
        start=whole.start,
        end=whole.end - 1,
        now=sequences.event_time[whole.end - 1] if len(whole) else whole.now,
        target=whole.target,
    )
    judged = sequences.item_index >= FIRST_INDEX
    if actions is not None:
        judged &= np.isin(sequences.action_index, actions)

    def work(part: Examples, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        following = part.start[:, None] + np.arange(batch[ITEM_INDEX].shape[1]) + 1
        real = following <= part.end[:, None]
        following = np.where(real, following, 0)
        wanted = real & judged[following] & (following > (part.end - num_events)[:, None])
        tensors = to_tensors(batch, encoder.device)
        target = torch.from_numpy(sequences.item_index[following].astype(np.int64)).to(encoder.device)
        asked = torch.from_numpy(sequences.action_index[following].astype(np.int64)).to(encoder.device)
        row, event = (torch.from_numpy(part).to(encoder.device) for part in wanted.nonzero())
        return following[wanted], surprise_at(encoder, vectors, tensors, (row, event), target, asked).cpu().numpy()

    parts = list(batches.each(sequences, inputs, work))
    place = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
    nats = np.concatenate([np.zeros(0, np.float32), *(part[1] for part in parts)])
    order = np.argsort(place)
    return Surprise(place[order], nats[order])


@torch.no_grad()
def surprise_at(
    encoder: ClickformerEncoder,
    vectors: Tensor,
    batch: TensorBatch,
    places: tuple[Tensor, Tensor],
    target: Tensor,
    action: Tensor,
) -> Tensor:
    """[P] minus log-probability of the event after each of P events.

    Args:
        encoder: causal.
        vectors: [V, D] of its items.
        batch: B users, T events.
        places: [P] row and event of each that is asked at.
        target, action: [B, T] item and action of the event after each.
    """
    row, event = places
    inputs = event_inputs(batch)
    if OwnInput.ASKED_ACTION in encoder.config.inputs:
        inputs[ASKED_ACTION] = torch.where(batch[PADDING_MASK], action, torch.zeros_like(action))
    states = encoder(**inputs)
    queries, own = pure_queries(states[row, event].float()), inputs[ITEM_INDEX][row]
    if encoder.neighbour_choice is not None:
        queries = encoder.neighbour_choice.choose(queries, own, event)
    if encoder.repeat_choice is not None:
        repeats = encoder.repeat_choice(states, choosable_events(inputs))
        queries = choose_again(queries, own, repeats.log_weight[row, event], repeats.gate[row, event])
    return -_log_probability(queries, vectors, target[row, event])


def _log_probability(queries: Queries, vectors: Tensor, target: Tensor) -> Tensor:
    """[P] log-probability of one item each under the mixture of P queries."""
    anew = dot(queries.users, vectors[target]) - log_partition(queries.users, vectors, first=FIRST_INDEX)
    same = queries.item_index == target[queries.row]
    chosen = torch.zeros_like(anew).index_add_(0, queries.row[same], queries.probability[same].to(anew.dtype))
    return torch.logaddexp(anew + queries.log_share, chosen.log())
