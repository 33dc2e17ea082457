"""Gradients of four well-known shapes of model, for the clipping benchmark."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SETS", "make"]

Shapes = list[tuple[int, ...]]


def lstm() -> Shapes:
    """A language model: embedding, two LSTM layers, output: 11 tensors, 11 M elements."""
    layer = [(4096, 1024), (4096, 256), (4096,), (4096,)]
    return [
        (10_000, 128),
        *layer,
        (1024, 1024),
        (1024, 256),
        (1024,),
        (1024,),
        (10_000, 256),
        (10_000,),
    ]


def resnet() -> Shapes:
    """ResNet-50: 161 tensors, 26 M elements."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, inputs, 1, 1))
            for shape in convolutions:
                shapes += [shape, (shape[0],), (shape[0],)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2() -> Shapes:
    """GPT-2 small: 148 tensors, 124 M elements."""
    block: Shapes = [
        *[(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)],
        *[(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)],
    ]
    return [(50_257, 768), (1024, 768), *block * 12, (768,), (768,)]


def tiny() -> Shapes:
    """A thousand tensors of 2080 elements: what is left is the cost per tensor."""
    return [(32, 65)] * 1000


SETS: dict[str, Callable[[], Shapes]] = {"lstm": lstm, "resnet": resnet, "gpt2": gpt2, "tiny": tiny}


def make(name: str) -> tuple[list[torch.nn.Parameter], list[Tensor]]:
    """Return parameters with gradients: normal, sizes spread log-normally over tensors, around 1e-3."""
    source = torch.Generator().manual_seed(0)
    parameters, grads = [], []
    for shape in SETS[name]():
        size = 1e-3 * float(torch.randn((), generator=source).mul(0.7).exp())
        # A parameter is never read here, so it needs no memory of its own.
        parameter = torch.nn.Parameter(torch.zeros(1).expand(shape))
        parameter.grad = torch.randn(shape, generator=source).mul_(size)
        parameters.append(parameter)
        grads.append(parameter.grad)
    return parameters, grads


def quantile(grads: list[Tensor], q: float) -> float:
    """Return the absolute value that a share ``q`` of all elements does not exceed."""
    every = max(1, sum(g.numel() for g in grads) // 2_000_000)
    sample = torch.cat([g.reshape(-1)[::every] for g in grads]).abs()
    return float(sample.kthvalue(max(1, int(q * sample.numel()))).values)
