"""What a training step must compute, by arithmetic, and what the machine can compute, measured."""

import time

import torch

_SQUARE = 2048
_TRIES = 8


def encoder_flops(width: int, num_layers: int, mean_length: float) -> float:
    """FLOPs of our encoder's forward pass for one real event; a multiply and an add are two.

    A layer has projections (3 D^2 in, D^2 out) and a gated feed-forward layer of inner width 2 D (6 D^2), 2 FLOPs each;
    causal attention looks at half of the L events before it on average, two products of D each: 2 x 2 x D x L / 2.
    The readout, of which nothing is asked here, has a norm only. Norms, embeddings and activations are left out.

    Args:
        width: D.
        num_layers: blocks.
        mean_length: L, the length of its sequence that an event sees on average (see `mean_length_of_events`).
    """
    return num_layers * (2 * (3 + 1 + 6) * width**2 + 2 * width * mean_length)


def training_flops(width: int, num_layers: int, mean_length: float, num_scored: int, num_products: int) -> float:
    """FLOPs of a training step for one real event with a target.

    The backward pass has two products for each of the forward pass: 3 times the encoder. The softmax is a product of
    the state with every item scored (2 V D): once forward and twice for the gradients, and once again where scores are
    not kept for them.

    Args:
        width, num_layers, mean_length: of the encoder, as above.
        num_scored: V, items that a state is held against.
        num_products: 3 where gradients are made with the losses (small catalogues), else 4.
    """
    return 3 * encoder_flops(width, num_layers, mean_length) + 2 * num_products * num_scored * width


def mean_length_of_events(lengths: torch.Tensor) -> float:
    """Mean over events of the length of the sequence they are in, from the lengths of all sequences."""
    lengths = lengths.double()
    return float((lengths**2).sum() / lengths.sum())


def matmul_peak(num_threads: int) -> float:
    """FLOPs a second of a product of two large float32 squares, the best of a few."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    left, right = torch.randn(_SQUARE, _SQUARE), torch.randn(_SQUARE, _SQUARE)
    seconds = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return 2 * _SQUARE**3 / min(seconds)
