"""Tables: the padding row is zero and stays so, and unreal items are never recommended."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_io.batch import Batch
from model.embedding import EventEmbedding, ItemTable
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.engine import parameter_groups, to_tensors
from model.loss_config import BinaryLoss, FullSoftmax, SampledSoftmax, SoftmaxSettings
from model.objectives import ItemLoss, MaskedItemObjective, NextItemObjective

TABLES = ("item_table", "event_embedding.action", "event_embedding.gap", "readout.elapsed")
MakeEncoder = Callable[..., ClickformerEncoder]
MakeBatch = Callable[..., Batch]
CPU = torch.device("cpu")


def padding_row(encoder: ClickformerEncoder, table: str) -> torch.Tensor:
    return encoder.get_parameter(f"{table}.weight")[0]


@pytest.mark.parametrize("table", TABLES)
def test_fresh_padding_row_is_zero_and_other_rows_are_not(table: str) -> None:
    encoder = ClickformerEncoder(ClickformerConfig(vocabulary_size=9, num_actions=4, hidden_size=8))
    weight = encoder.get_parameter(f"{table}.weight")
    assert (weight[0] == 0).all()
    assert (weight[1:] != 0).any(dim=1).all()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "softmax", [FullSoftmax(label_smoothing=0.1), SampledSoftmax(num_uniform=8, num_in_batch=4), BinaryLoss()]
)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_padding_row_never_receives_gradient(
    make_encoder: MakeEncoder,
    make_batch: MakeBatch,
    attention: str,
    softmax: SoftmaxSettings,
    table: str,
) -> None:
    encoder = make_encoder(attention=attention, repeats=not isinstance(softmax, BinaryLoss))
    item_loss = ItemLoss(softmax, torch.ones(12))
    masked = attention == "bidirectional"
    objective = MaskedItemObjective(encoder, item_loss, 0.5) if masked else NextItemObjective(encoder, item_loss)
    objective(to_tensors(make_batch(5, 2, 0, 1), CPU), seed=1).backward()
    gradient = encoder.get_parameter(f"{table}.weight").grad
    assert gradient is not None
    assert (gradient[0] == 0).all()
    assert (gradient[2:] != 0).any()


def test_padding_rows_are_still_zero_after_steps_of_the_optimizer(
    make_encoder: MakeEncoder, make_batch: MakeBatch
) -> None:
    encoder = make_encoder()
    objective = NextItemObjective(encoder, ItemLoss(FullSoftmax(), torch.ones(12)))
    optimizer = torch.optim.AdamW(parameter_groups(objective, weight_decay=0.1), lr=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        objective(to_tensors(make_batch(3, 1), CPU), seed).backward()
        optimizer.step()
    assert all((padding_row(encoder, table) == 0).all() for table in TABLES)


def test_scores_are_dot_products_and_minus_infinity_for_padding_and_unknown() -> None:
    table = ItemTable(5, 4)
    torch.nn.init.normal_(table.weight)
    states = torch.randn(3, 4)
    scores = table(states=states)
    torch.testing.assert_close(scores[:, 2:], states @ table.weight[2:].T)
    assert (scores[:, :2] == float("-inf")).all()


def test_losses_are_those_of_the_scores() -> None:
    table = ItemTable(5, 4)
    torch.nn.init.normal_(table.weight)
    states, targets = torch.randn(3, 4), torch.tensor([2, 4, 3])
    expected = torch.nn.functional.cross_entropy(table(states=states), targets, reduction="none")
    torch.testing.assert_close(table(states=states, targets=targets), expected)


def test_by_cosine_the_length_of_an_item_vector_does_not_matter() -> None:
    table = ItemTable(5, 4, cosine=True)
    torch.nn.init.normal_(table.weight)
    states, targets = torch.randn(3, 4), torch.tensor([2, 4, 3])
    expected = states @ torch.nn.functional.normalize(table.weight[2:], dim=1).T
    torch.testing.assert_close(table(states=states)[:, 2:], expected)
    losses = torch.nn.functional.cross_entropy(expected, targets - 2, reduction="none")
    torch.testing.assert_close(table(states=states, targets=targets), losses)
    torch.testing.assert_close(table(torch.tensor([3])), table.weight[3:4])


@pytest.mark.parametrize("softmax", [FullSoftmax(), SampledSoftmax(num_uniform=8, num_in_batch=4)])
def test_by_cosine_no_score_is_beyond_one_over_the_temperature(
    make_encoder: MakeEncoder, make_batch: MakeBatch, softmax: SoftmaxSettings
) -> None:
    encoder = make_encoder(cosine_temperature=0.1, repeats=False)
    batch = to_tensors(make_batch(5, 2, 1), CPU)
    users = encoder.user_states(batch)
    torch.testing.assert_close(users.norm(dim=1), torch.full((3,), 10.0))
    assert encoder.item_table(states=users)[:, 2:].abs().max() <= 10.0001
    assert NextItemObjective(encoder, ItemLoss(softmax, torch.ones(12)))(batch, 0).isfinite()


def test_a_folder_knows_that_items_are_held_by_cosine(
    tmp_path: Path, make_encoder: MakeEncoder, make_batch: MakeBatch
) -> None:
    encoder, batch = make_encoder(cosine_temperature=0.1), to_tensors(make_batch(5, 2), CPU)
    encoder.save_pretrained(tmp_path)
    loaded = ClickformerEncoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded.rank_items(batch), encoder.rank_items(batch))


def test_item_table_asked_for_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="ItemTable needs item_index or states"):
        ItemTable(5, 4)()


def test_hidden_event_keeps_its_gap_and_loses_item_and_action() -> None:
    embedding = EventEmbedding(4, num_actions=4, dropout=0.0)
    items, action, gap = torch.randn(1, 2, 4), torch.tensor([[2, 3]]), torch.tensor([[5, 6]])
    vectors = embedding(items, action, gap, torch.tensor([[True, False]]))
    torch.testing.assert_close(vectors[0, 0], embedding.mask.weight[0] + embedding.gap.weight[5])
    torch.testing.assert_close(vectors[0, 1], items[0, 1] + embedding.action.weight[3] + embedding.gap.weight[6])


def test_vectors_turn_the_way_they_are_told_and_keep_their_length(make_encoder: Callable) -> None:
    table = make_encoder().item_table
    before = table.weight.detach().clone()
    directions = torch.nn.functional.normalize(torch.randn(before.shape), dim=1)
    table.start_at(directions)
    torch.testing.assert_close(table.weight.norm(dim=1), before.norm(dim=1))
    cosine = (table.weight[2:] * directions[2:]).sum(dim=1) / table.weight[2:].norm(dim=1)
    torch.testing.assert_close(cosine, torch.ones(len(cosine)))
    torch.testing.assert_close(table.weight[:2], before[:2], msg="padding and unknown stay")
