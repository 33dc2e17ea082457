"""Small training jobs whose gradients are recorded, healthy or with one labelled fault.

Tiny on purpose: about a millisecond a step, so that 200 000 healthy steps are affordable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from benchmarks.fault_kinds import Place
from torch import Tensor, nn

from gradwatch.clipping.policies import Policy

__all__ = ["JOBS", "Job", "constant", "warm_cosine"]


@dataclass(frozen=True)
class Job:
    """One kind of training.

    Attributes:
        model: Makes the model.
        batch: Step and generator to a batch ``(inputs, targets)``; targets are class numbers.
        optimizer: Parameters to optimizer.
        schedule: Step and steps to the factor on the learning rate.
        place: Where faults go.
        dtype: Dtype of parameters and gradients.
        criterion: Outputs and targets to the loss.
        clip: The job's own clipping, done by the client.
        scaler: Whether it trains in float16 with a loss scaler.
        deep: Whether a wrong initialisation makes gradients fade with depth.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]
    place: Place
    dtype: torch.dtype = torch.float32
    criterion: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    clip: Policy | None = None
    scaler: bool = False
    deep: bool = False


class Residual(nn.Module):
    """Residual blocks behind layer norms, with dropout: the shape of a transformer without attention."""

    def __init__(self, width: int = 32, depth: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.inp = nn.Linear(16, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)
            )
            for _ in range(depth)
        )
        self.out = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 16] to [batch, 8] logits."""
        h = self.inp(x)
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


class Recurrent(nn.Module):
    """A GRU over [batch, time, 4]; the class depends on the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 16, batch_first=True)
        self.out = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, 4] to [batch, 8] logits."""
        return self.out(self.rnn(x)[0][:, -1])


class Convolutional(nn.Module):
    """Two convolutions and batch norm on [batch, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.out = nn.Linear(8 * 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, 8, 8] to [batch, 8] logits."""
        h = torch.relu(self.n1(self.c1(x)))
        return self.out(torch.relu(self.c2(h)).flatten(1))


class Attention(nn.Module):
    """One attention block over [batch, time, 4]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inp = nn.Linear(4, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.fc = nn.Linear(width, width)
        self.out = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, 4] to [batch, 8] logits."""
        h = self.inp(x)
        q, k, v = self.qkv(self.norm(h)).chunk(3, dim=-1)
        h = h + torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1) @ v
        return self.out(torch.relu(self.fc(h)).mean(dim=1))


_TEACHER = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


def _flat(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    del step
    x = torch.randn(16, 16, generator=generator)
    noise = torch.randn(16, 8, generator=generator)
    return x, (x @ _TEACHER + 0.5 * noise).argmax(dim=1)


def _epochs(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A fixed set of 40 batches seen again and again: epoch borders and slow overfitting."""
    del generator
    return _flat(step, torch.Generator().manual_seed(step % 40))


def _images(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, y = _epochs(step, generator)
    return torch.cat([x, x.flip(1), -x, x.roll(3, 1)], dim=1).view(-1, 1, 8, 8), y


def _sequences(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences that grow with the training, as curricula do."""
    length = 4 + min(8, step // 2000)
    x = torch.randn(16, length, 4, generator=generator)
    pooled = torch.cat([x.mean(1), x[:, -1], x[:, 0], x.amax(1)], dim=1)
    return x, (pooled @ _TEACHER).argmax(dim=1)


def warm_cosine(step: int, steps: int) -> float:
    warm = max(20, steps // 100)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def constant(step: int, steps: int) -> float:
    del step, steps
    return 1.0


def _staircase(step: int, steps: int) -> float:
    return 0.3 ** (4 * step // max(1, steps))


JOBS: dict[str, Job] = {
    "residual_adamw": Job(
        Residual,
        _flat,
        lambda p: torch.optim.AdamW(p, lr=1e-3),
        warm_cosine,
        Place("blocks.1.1.weight", "blocks.1.1.bias", -20.0, "blocks.0.1.weight", "inp.weight"),
    ),
    "cnn_sgd": Job(
        Convolutional,
        _images,
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
        _staircase,
        Place("c2.weight", "c2.bias", -20.0, "out.weight", "c1.weight", 8.0),
    ),
    "cnn_slow": Job(  # at 0.03 every ReLU of c2 dies sooner or later
        Convolutional,
        _images,
        lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9),
        _staircase,
        Place("c2.weight", "c2.bias", -20.0, "out.weight", "c1.weight", 8.0),
    ),
    "gru_adam": Job(
        Recurrent,
        _sequences,
        lambda p: torch.optim.Adam(p, lr=2e-3),
        constant,
        Place("rnn.weight_ih_l0", "rnn.bias_ih_l0", 20.0, "out.weight", "rnn.weight_ih_l0"),
    ),
    "attention_adamw": Job(
        Attention,
        _sequences,
        lambda p: torch.optim.AdamW(p, lr=1e-3),
        warm_cosine,
        Place("qkv.weight", "fc.bias", -20.0, "fc.weight", "inp.weight"),
    ),
    "residual_bf16": Job(
        Residual,
        _epochs,
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        warm_cosine,
        Place("blocks.0.1.weight", "blocks.1.1.bias", -20.0, "blocks.1.1.weight", "inp.weight"),
        dtype=torch.bfloat16,
    ),
}
