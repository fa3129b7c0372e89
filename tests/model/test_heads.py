"""Heads: which parameters learn, how features are scaled, and the loss of an outcome."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_io.batch import FEATURES, OUTCOME, Batch
from data_io.config import SettingsError
from model.answers import Binary
from model.encoder import ClickformerConfig, ClickformerEncoder, TensorBatch
from model.engine import to_tensors
from model.heads import ClickformerForOutcome, OutcomeHead, free_parameters
from model.outcome_objective import OutcomeObjective
from model.task_config import FrozenEncoder, FullEncoder, TopLayers

CPU = torch.device("cpu")
MakeEncoder = Callable[..., ClickformerEncoder]
MakeBatch = Callable[..., Batch]


def make_model(**fields: Any) -> ClickformerForOutcome:
    torch.manual_seed(0)
    shape = {"vocabulary_size": 12, "num_actions": 4, "hidden_size": 8, "num_features": 3, "dropout": 0.0}
    return ClickformerForOutcome(ClickformerConfig(**(shape | fields))).eval()


def with_outcomes(batch: Batch) -> TensorBatch:
    """The batch with random features, and outcomes 0, 1, 0, ..."""
    num_users = len(batch["item_index"])
    features = np.random.default_rng(0).random((num_users, 3), np.float32)
    return to_tensors(batch | {FEATURES: features, OUTCOME: np.arange(num_users, dtype=np.float32)[:, None] % 2}, CPU)


def learning_parts(encoder: ClickformerEncoder) -> set[str]:
    """Parts of the encoder that learn, blocks by their number."""
    names = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    return {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in names}


def test_frozen_encoder_learns_nothing(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    free_parameters(encoder, FrozenEncoder())
    assert learning_parts(encoder) == set()


def test_top_layers_learn_with_readout_and_repeat_choice(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(num_layers=3)
    free_parameters(encoder, TopLayers(num_layers=2))
    assert learning_parts(encoder) == {"blocks.1", "blocks.2", "readout", "repeat_choice"}


def test_full_encoder_learns_all_of_itself_even_if_it_was_frozen(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    free_parameters(encoder, FrozenEncoder())
    free_parameters(encoder, FullEncoder())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_more_free_blocks_than_there_are_is_an_error(make_encoder: MakeEncoder) -> None:
    with pytest.raises(SettingsError, match=r"finetune\.trainable\.num_layers is 3, but the encoder has 2 blocks"):
        free_parameters(make_encoder(), TopLayers(num_layers=3))


@pytest.mark.parametrize("trainable", [FrozenEncoder(), TopLayers(), FullEncoder()])
def test_head_always_learns_and_what_learns_receives_gradient(
    make_batch: MakeBatch,
    trainable: FrozenEncoder | TopLayers | FullEncoder,
) -> None:
    model = make_model(attention="bidirectional")
    model.free_parameters(trainable)
    OutcomeObjective(model)(with_outcomes(make_batch(3, 2, 1)), seed=0).backward()
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_outcome_trains_no_repeat_choice() -> None:
    model = make_model()
    model.free_parameters(FullEncoder())
    assert "repeat_choice" not in learning_parts(model.encoder)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_padding_changes_no_users_logit(make_batch: MakeBatch, attention: str) -> None:
    model = make_model(attention=attention)
    batch = with_outcomes(make_batch(5, 2, 0))
    together = model(batch)
    alone = {name: tensor[1:2, :2] if tensor.shape[1:] == (5,) else tensor[1:2] for name, tensor in batch.items()}
    torch.testing.assert_close(together[1:2], model(alone), atol=1e-5, rtol=0)
    assert together.isfinite().all()


def test_features_are_standardised_by_the_fixed_scale() -> None:
    head, users, features = OutcomeHead(4, 2, 0.0, [Binary()]), torch.randn(3, 4), torch.randn(3, 2)
    standardised = head(users, features)
    mean, std = torch.tensor([3.0, -1.0], dtype=torch.float64), torch.tensor([2.0, 0.5], dtype=torch.float64)
    head.set_scale(mean, std)
    torch.testing.assert_close(head(users, features * std.float() + mean.float()), standardised)


def test_feature_that_never_varied_gives_finite_logits() -> None:
    head = OutcomeHead(4, 2, 0.0, [Binary()])
    head.set_scale(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert head(torch.randn(3, 4), torch.ones(3, 2)).isfinite().all()


def test_scale_of_features_is_saved_with_the_weights() -> None:
    assert {"head.feature_mean", "head.feature_std"} <= make_model().state_dict().keys()


def test_outcome_loss_is_torch_binary_cross_entropy_over_users_with_events(make_batch: MakeBatch) -> None:
    model, batch = make_model(), with_outcomes(make_batch(2, 1, 0, 3))
    real = torch.tensor([True, True, False, True])
    expected = F.binary_cross_entropy(model(batch).sigmoid()[real], batch[OUTCOME][real], reduction="sum")
    torch.testing.assert_close(OutcomeObjective(model)(batch, seed=0), expected)


def test_frozen_encoder_keeps_its_dropout_off_while_the_head_trains() -> None:
    objective = OutcomeObjective(make_model(dropout=0.5))
    assert objective.train().model.encoder.training
    objective.model.free_parameters(FrozenEncoder())
    assert not objective.train().model.encoder.training
    assert objective.model.head.training
