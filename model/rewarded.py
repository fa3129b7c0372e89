"""Learning from what users did with what they were shown: each target weighs as much as its action is worth.

An off-policy policy gradient. The policy is the encoder that learns; the behaviour that made the log is modelled by the
encoder it starts from, which was trained to predict that log and stays as it is. Invariant: weights carry no gradient.
"""

import torch
from torch import Tensor

from data_io.batch import ELAPSED, TARGET_ACTION_INDEX, TARGET_ITEM_INDEX
from model.encoder import ClickformerEncoder, EncoderInputs, TensorBatch, event_inputs
from model.objectives import ItemLoss, NextItemObjective, choice_losses
from model.readout import READOUT_INPUTS
from model.task_config import RewardSettings


class RewardedObjective(NextItemObjective):
    """REINFORCE with importance weights and a top-K correction.

    Args:
        encoder: that learns, the policy.
        item_loss: a whole softmax, so that a loss is minus a log-probability.
        behaviour: encoder of the log, not trained.
        rewards: [num_actions] what each action is worth.
        settings: cap and K.

    Source:
        Chen et al. 2019, "Top-K off-policy correction for a REINFORCE recommender system", eq. 3, 6 and 7.
    """

    rewards: Tensor

    def __init__(
        self,
        encoder: ClickformerEncoder,
        item_loss: ItemLoss,
        behaviour: ClickformerEncoder,
        rewards: Tensor,
        settings: RewardSettings,
    ) -> None:
        super().__init__(encoder, item_loss)
        self.behaviour = behaviour.requires_grad_(False)
        self.register_buffer("rewards", rewards.float(), persistent=False)
        self.settings = settings

    def train(self, mode: bool = True) -> "RewardedObjective":
        """As usual, but the behaviour keeps its dropout off."""
        super().train(mode)
        self.behaviour.eval()
        return self

    def forward(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed weighed loss over positions whose target is not 0."""
        actions, targets = batch[TARGET_ACTION_INDEX], batch[TARGET_ITEM_INDEX]
        inputs = self.ask(event_inputs(batch), actions, seed)
        losses = self._losses(self.encoder, inputs, targets, seed)
        with torch.no_grad():
            before = self._losses(self.behaviour, inputs, targets, seed)
        weights = policy_weights(-losses.detach(), -before, self.settings.top_k, self.settings.max_importance)
        return (self.rewards[actions[targets > 0]] * weights * losses).sum()

    def _losses(self, encoder: ClickformerEncoder, inputs: EncoderInputs, targets: Tensor, seed: int) -> Tensor:
        known = {name: tensor for name, tensor in inputs.items() if name not in READOUT_INPUTS}
        events = encoder.event_states(**known, seed=seed)
        states = encoder.read_out(events, inputs[ELAPSED], inputs.get("asked_action"))
        return choice_losses(encoder, self.item_loss, states, inputs, targets, seed)


def policy_weights(log_policy: Tensor, log_behaviour: Tensor, top_k: int, most: float) -> Tensor:
    """[P] capped importance times the top-K correction K (1 - pi)^(K - 1), of actions with these log-probabilities."""
    importance = (log_policy - log_behaviour).exp().clamp(max=most)
    missed = (-torch.expm1(log_policy.clamp(max=0))).clamp(min=0)
    return importance * top_k * missed ** (top_k - 1)
