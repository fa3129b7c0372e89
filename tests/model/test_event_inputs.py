"""Inputs of an event: missing ones add nothing, padding and the future change no state, hidden events show nothing."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_io.batch import (
    ACTION_INDEX,
    ASKED_ACTION,
    COLUMN,
    ELAPSED,
    GAP,
    MOMENT,
    PADDING_MASK,
    TARGET_ACTION_INDEX,
    Batch,
)
from data_io.columns import TOKENS_PER_TEXT
from model.encoder import ClickformerEncoder, event_inputs
from model.engine import to_tensors
from model.event_inputs import CalendarEmbedding, ColumnEmbedding, TextEmbedding
from model.loss_config import FullSoftmax
from model.objectives import ItemLoss, MaskedItemObjective, NextItemObjective, ask_for_some

CPU = torch.device("cpu")
OWN = dict.fromkeys(("action", "gap", "elapsed", "asked_action", "calendar"), "own")
ALL = OWN | {"query": "text", "price": "numeric", "device.type": "categorical"}
BUY = 3
attentions = pytest.mark.parametrize("attention", ["causal", "bidirectional"])
MakeEncoder = Callable[..., ClickformerEncoder]


@pytest.fixture(scope="session")
def make_wide_batch(make_batch: Callable[..., Batch]) -> Callable[..., Batch]:
    """A batch with every kind of column; some values are missing, and some events have no text."""

    def make(*lengths: int, seed: int = 0) -> Batch:
        batch, generator = make_batch(*lengths, seed=seed), np.random.default_rng(seed + 100)
        real = batch[PADDING_MASK]
        tokens = generator.integers(1, 8_000, (*real.shape, TOKENS_PER_TEXT))
        tokens *= np.arange(TOKENS_PER_TEXT) < generator.integers(0, 5, real.shape)[..., None]
        columns = {"query": tokens * real[..., None], "price": generator.integers(0, 160, real.shape) * real}
        columns["device.type"] = generator.integers(0, 1_000, real.shape) * real
        return batch | {f"{COLUMN}{name}": column for name, column in columns.items()}

    return make


def states(encoder: ClickformerEncoder, batch: Batch, **more: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder(**event_inputs(to_tensors(batch, CPU)), **more)


def users(encoder: ClickformerEncoder, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return encoder.user_states(to_tensors(batch, CPU))


def test_a_text_is_the_mean_of_its_tokens_and_none_adds_nothing() -> None:
    torch.manual_seed(0)
    text = TextEmbedding(4)
    tokens = torch.zeros(2, 2, TOKENS_PER_TEXT, dtype=torch.int64)
    tokens[0, 1, :3] = torch.tensor([5, 9, 5])
    vectors = text(tokens)
    torch.testing.assert_close(vectors[0, 1], (2 * text.rows.weight[5] + text.rows.weight[9]) / 3)
    assert not vectors[1].any()
    assert not vectors[0, 0].any()
    vectors.sum().backward()
    assert text.rows.weight.grad is not None
    assert text.rows.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [5, 9]


def test_a_batch_without_any_text_runs_the_same_module() -> None:
    text = TextEmbedding(4)
    text(torch.zeros(2, 3, TOKENS_PER_TEXT, dtype=torch.int64)).sum().backward()
    assert text.rows.weight.grad is not None
    assert not text.rows.weight.grad.any()


@pytest.mark.parametrize("when", ["1970-01-01T00:00", "2024-02-29T23:59", "2023-07-03T12:00", "1969-12-28T05:00"])
def test_hour_and_weekday_are_those_of_the_calendar(when: str) -> None:
    calendar, moment = CalendarEmbedding(4), datetime.fromisoformat(when).replace(tzinfo=UTC)
    micros = torch.tensor([[int(moment.timestamp()) * 1_000_000, 0]])
    vectors = calendar(micros, torch.tensor([[True, False]]))[0]
    expected = calendar.hour.weight[1 + moment.hour] + calendar.weekday.weight[1 + moment.weekday()]
    torch.testing.assert_close(vectors[0], expected)
    assert not vectors[1].any(), "padding is at no time"


@pytest.mark.parametrize("kind", ["numeric", "categorical"])
def test_a_missing_value_adds_nothing(kind: str) -> None:
    assert not ColumnEmbedding(kind, 4)(torch.zeros(1, 2, dtype=torch.int64)).any()


@attentions
def test_padding_changes_no_users_vector(
    make_encoder: MakeEncoder, make_wide_batch: Callable[..., Batch], attention: str
) -> None:
    encoder, batch = make_encoder(inputs=ALL, asked_action=BUY, attention=attention), make_wide_batch(3, 6, 1)
    for row in range(3):
        alone = {name: array[row : row + 1, : (3, 6, 1)[row]] for name, array in batch.items()}
        torch.testing.assert_close(users(encoder, batch)[row], users(encoder, alone)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", ["transformer", "ligr", "hstu", "gru"])
def test_causal_states_know_of_the_next_event_what_is_asked_and_nothing_else(
    make_encoder: MakeEncoder, make_wide_batch: Callable[..., Batch], block: str
) -> None:
    """State t depends on events up to t and, by the readout, on elapsed and asked action of place t only."""
    encoder = make_encoder(inputs=ALL, block=block)
    batch, other = make_wide_batch(6), make_wide_batch(6, seed=9)
    changed = {name: np.concatenate([array[:, :4], other[name][:, 4:]], axis=1) for name, array in batch.items()}
    asked = torch.tensor([[2, 3, 0, 3, 2, 3]])
    before = states(encoder, batch, asked_action=asked)
    after = states(encoder, changed, asked_action=torch.where(torch.arange(6) < 4, asked, 5 - asked))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    for name, place in ((ELAPSED, 2), (ASKED_ACTION, 2)):
        elapsed, asks = batch[ELAPSED].copy(), asked.clone()
        if name == ELAPSED:
            elapsed[0, place] += 1
        else:
            asks[0, place] = 3
        moved = states(encoder, batch | {ELAPSED: elapsed}, asked_action=asks)
        differs = (moved - before).abs().amax(dim=2)[0] > 1e-6
        assert differs.tolist() == [at == place for at in range(6)]


@pytest.mark.parametrize("name", [ACTION_INDEX, GAP, MOMENT, *(f"{COLUMN}{name}" for name in ALL if name not in OWN)])
def test_every_input_is_seen_if_asked_for_and_else_not(
    make_encoder: MakeEncoder, make_wide_batch: Callable[..., Batch], name: str
) -> None:
    batch, other = make_wide_batch(6), make_wide_batch(6, seed=9)
    changed = batch | {name: other[name]}
    assert not torch.allclose(users(make_encoder(inputs=ALL), batch), users(make_encoder(inputs=ALL), changed))
    blind = make_encoder(inputs={})
    torch.testing.assert_close(users(blind, batch), users(blind, changed | {ELAPSED: other[ELAPSED]}))


def test_items_alone_have_no_other_table(make_encoder: MakeEncoder) -> None:
    tables = {
        name for name, module in make_encoder(inputs={}).named_modules() if isinstance(module, torch.nn.Embedding)
    }
    assert tables == {"event_embedding.mask"}


def test_a_hidden_event_shows_its_gap_and_nothing_else(
    make_encoder: MakeEncoder, make_wide_batch: Callable[..., Batch]
) -> None:
    encoder = make_encoder(inputs=ALL, attention="bidirectional")
    batch, other = make_wide_batch(6), make_wide_batch(6, seed=9)
    hidden = torch.arange(6)[None] == 2
    kept = (GAP, ELAPSED, PADDING_MASK)
    shown = {name: array if name in kept else array.copy() for name, array in batch.items()}
    for name in set(batch) - set(kept):
        shown[name][:, 2] = other[name][:, 2]
    torch.testing.assert_close(states(encoder, batch, hidden=hidden), states(encoder, shown, hidden=hidden))
    assert not torch.allclose(states(encoder, batch), states(encoder, shown))


@attentions
def test_users_are_asked_for_the_action_of_the_config_once(
    make_encoder: MakeEncoder, make_wide_batch: Callable[..., Batch], attention: str
) -> None:
    batch = make_wide_batch(3, 0)
    asking = make_encoder(inputs=ALL, asked_action=BUY, attention=attention)
    seen: list[torch.Tensor] = []
    asking.readout.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    users(asking, batch)
    width = 3 if attention == "causal" else 4
    assert seen[0].tolist() == [[0] * (width - 1) + [BUY], [BUY] + [0] * (width - 1)]
    silent = make_encoder(inputs=ALL, attention=attention)
    assert not torch.allclose(users(asking, batch)[0], users(silent, batch)[0])


def test_half_of_the_actions_are_asked_for_and_the_same_for_a_seed() -> None:
    actions = torch.full((40, 50), BUY)
    asked = ask_for_some(actions, seed=1)
    assert set(asked.unique().tolist()) == {0, BUY}
    assert 0.45 < (asked > 0).double().mean() < 0.55
    assert torch.equal(asked, ask_for_some(actions, seed=1))
    assert not torch.equal(asked, ask_for_some(actions, seed=2))


def test_in_training_the_following_action_is_asked_for(
    make_encoder: MakeEncoder, make_wide_batch: Callable[..., Batch]
) -> None:
    encoder = make_encoder(inputs=ALL)
    batch = to_tensors(make_wide_batch(4, 6), CPU)
    actions = torch.where(batch[PADDING_MASK], 2, 0)
    batch[TARGET_ACTION_INDEX] = actions
    seen: list[torch.Tensor] = []
    encoder.readout.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    objective = NextItemObjective(encoder, ItemLoss(FullSoftmax(), torch.ones(12)))
    assert objective(batch, seed=4).isfinite()
    assert torch.equal(seen[0], objective.ask({}, actions, seed=4)[ASKED_ACTION])
    assert 0 < (seen[0] > 0).sum() < (actions > 0).sum(), "some, not all"


def test_a_hidden_event_is_asked_for_by_its_own_action(
    make_encoder: MakeEncoder, make_wide_batch: Callable[..., Batch]
) -> None:
    encoder = make_encoder(inputs=ALL, attention="bidirectional")
    batch = to_tensors(make_wide_batch(6, 6, 6, 6), CPU)
    seen: list[torch.Tensor] = []
    encoder.event_embedding.register_forward_pre_hook(lambda _, given: seen.append(given[3]))
    encoder.readout.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    MaskedItemObjective(encoder, ItemLoss(FullSoftmax(), torch.ones(12)), 0.5)(batch, seed=4)
    hidden, asked = seen
    assert not asked[~hidden].any()
    assert 0 < (asked > 0).sum() < hidden.sum(), "some of the hidden, not all"
    assert torch.equal(asked[asked > 0], batch[ACTION_INDEX][asked > 0])


def test_no_table_learns_its_padding_row(make_encoder: MakeEncoder, make_wide_batch: Callable[..., Batch]) -> None:
    encoder = make_encoder(inputs=ALL)
    batch = to_tensors(make_wide_batch(2, 6), CPU)
    asked = F.pad(torch.tensor([[2, 3], [3, 0]]), (0, 4))
    encoder(**event_inputs(batch), asked_action=asked).square().sum().backward()
    for name, table in encoder.named_modules():
        if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
            assert not table.weight[0].any(), name
            assert table.weight.grad is not None
            assert not table.weight.grad[0].any(), name
            assert table.weight.grad.any(), name


def test_a_folder_knows_what_its_network_sees(
    tmp_path: Path, make_encoder: MakeEncoder, make_wide_batch: Callable[..., Batch]
) -> None:
    inputs: dict[str, Any] = dict(reversed(ALL.items()))
    encoder, batch = make_encoder(inputs=inputs, asked_action=BUY), make_wide_batch(3, 6)
    encoder.save_pretrained(tmp_path)
    loaded = ClickformerEncoder.from_pretrained(tmp_path).eval()
    assert (loaded.config.inputs, loaded.config.asked_action) == (ALL, BUY)
    torch.testing.assert_close(users(loaded, batch), users(encoder, batch))


def test_a_folder_of_an_earlier_version_sees_what_it_saw(tmp_path: Path, make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    del encoder.config.inputs, encoder.config.asked_action
    encoder.save_pretrained(tmp_path)
    loaded = ClickformerEncoder.from_pretrained(tmp_path)
    assert list(loaded.config.inputs) == ["action", "gap", "elapsed"]
    assert loaded.config.asked_action == 0
    assert loaded.state_dict().keys() == make_encoder().state_dict().keys()
