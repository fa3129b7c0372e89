"""Adversarial training: event vectors moved where the loss grows fastest, and learned from all the same.

Knows nothing of encoders: a loss is a function of the perturbation. Invariant: finding the direction leaves no trace in
the gradients of parameters.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_LEAST_NORM = 1e-12
"""Below this a gradient has no direction: a user without targets is not moved, and squares must not underflow."""


def adversarial_loss(loss_at: Callable[[Tensor | None], Tensor], zeros: Tensor, epsilon: float) -> Tensor:
    """Mean of the loss as it is and of the loss under the worst small perturbation.

    The direction has a forward pass of its own. With the graph of the plain loss kept for it a step would be an eighth
    cheaper, but ZeRO-3 gathers the weights for one backward pass through each forward pass only.

    Args:
        loss_at: a summed loss under a perturbation [B, T, D]; None is none.
        zeros: [B, T, D], which gives shape, type and device.
        epsilon: length of each user's perturbation.

    Source:
        Miyato et al. 2017, "Adversarial training methods for semi-supervised text classification", arXiv 1605.07725,
        eq. 5 and 6.
    """
    still = zeros.requires_grad_()
    (gradient,) = torch.autograd.grad(loss_at(still), still)
    return (loss_at(None) + loss_at(epsilon * unit_of_users(gradient))) / 2


def unit_of_users(gradient: Tensor) -> Tensor:
    """[B, T, D] with the part of each user scaled to length 1, or 0 where there is none."""
    norm = gradient.flatten(start_dim=1).norm(dim=1).clamp(min=_LEAST_NORM)
    return gradient / norm[:, None, None]
