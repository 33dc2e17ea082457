"""Faults that are put into small trainings on purpose: what each does, and what it is in the gradients.

A fault acts at one of five places of a training step: on the batch, on the learning rate, on the
weights before the forward pass, on the loss, or on the gradients before the update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["CLASSES", "LENGTHS", "NEW_KINDS", "Injection", "Place"]

CLASSES: Final[Mapping[str, str]] = {
    "lr_spike": "exploding",
    "corrupt_labels": "exploding",
    "corrupt_inputs": "exploding",
    "loss_scale": "exploding",
    "no_zero_grad": "exploding",
    "nan_tensor": "nonfinite",
    "fp16_overflow": "nonfinite",
    "frozen_layer": "vanishing",
    "dead_relu": "vanishing",
    "saturate": "vanishing",
    "wrong_init": "vanishing",
    "oscillation": "oscillating",
    # Kinds that public collections lack.
    "data_repeated": "exploding",
    "label_shift": "exploding",
    "scheduler_x10": "exploding",
    "schedule_restart": "exploding",
    "exploding_activations": "exploding",
    "weight_corruption": "exploding",
    "scale_not_undone": "exploding",
    "sign_flip": "exploding",
    "inf_loss": "nonfinite",
    "nan_input": "nonfinite",
    "detached": "vanishing",
    "fp16_underflow": "vanishing",
    "rate_alternates": "oscillating",
    "momentum_high": "oscillating",
}

NEW_KINDS: Final = tuple(CLASSES)[tuple(CLASSES).index("data_repeated") :]

# Steps that a fault lasts; 0: to the end of the run.
LENGTHS: Final[Mapping[str, int]] = {
    "lr_spike": 5, "corrupt_labels": 5, "corrupt_inputs": 3, "loss_scale": 16, "no_zero_grad": 25,
    "nan_tensor": 1, "fp16_overflow": 3, "frozen_layer": 60, "dead_relu": 0, "saturate": 0,
    "wrong_init": 0, "oscillation": 40, "data_repeated": 15, "label_shift": 20, "scheduler_x10": 15,
    "schedule_restart": 0, "exploding_activations": 20, "weight_corruption": 1,
    "scale_not_undone": 12, "sign_flip": 15, "inf_loss": 1, "nan_input": 1, "detached": 40,
    "fp16_underflow": 20, "rate_alternates": 40, "momentum_high": 40,
}  # fmt: skip

RATES: Final[Mapping[str, float]] = {
    "lr_spike": 30.0,
    "scheduler_x10": 10.0,
    "schedule_restart": 10.0,
    "oscillation": 12.0,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the faults of one job go.

    Attributes:
        frozen: Tensor that loses its gradient.
        dead: Bias that kills or saturates a layer, and the value it is set to.
        cut: Tensors behind a detached activation: all that lies before this one stops learning.
        scaled: Weight that grows when activations explode.
        edge: Factor on the learning rate that brings the run to the edge of stability.
    """

    frozen: str
    dead: str
    dead_to: float
    cut: str
    scaled: str
    edge: float = 12.0


@dataclass(slots=True)
class Injection:
    """One fault, active in the half-open interval of steps ``[start, end)``.

    Attributes:
        kind: One of :data:`CLASSES`.
        start: First step.
        end: First step after it.
        place: Where it goes.
        tensor: Name of the tensor it is put into, for kinds that hit one.
    """

    kind: str
    start: int
    end: int
    place: Place
    tensor: str = ""

    def active(self, step: int) -> bool:
        """Whether it acts at this step."""
        return self.start <= step < self.end

    def rate(self, step: int) -> float:
        """Factor on the learning rate."""
        if self.kind == "oscillation":
            return self.place.edge
        if self.kind == "rate_alternates":
            return 2 * self.place.edge if (step - self.start) % 2 == 0 else 0.1
        return RATES.get(self.kind, 1.0)

    def batch(
        self, step: int, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> Sequence[Tensor]:
        """The batch that the step really gets."""
        if self.kind == "corrupt_labels":
            y = _wrong(y, torch.Generator().manual_seed(step))
        elif self.kind == "label_shift":
            y = _shifted(y)
        elif self.kind == "corrupt_inputs" and x.is_floating_point():
            x = x * 10 + 5 * torch.randn(x.shape, generator=generator).to(x)
        elif self.kind == "corrupt_inputs":
            x = torch.randint_like(x, int(x.max()) + 1)
        elif self.kind == "nan_input" and x.is_floating_point():
            x = x.clone()
            x.view(-1)[0] = math.nan
        return x, y

    @torch.no_grad()
    def weights(self, step: int, model: nn.Module) -> None:
        """What happens to the weights before the forward pass."""
        named = dict(model.named_parameters())
        first = step == self.start
        if self.kind in {"dead_relu", "saturate"} and first:
            named[self.place.dead].fill_(self.place.dead_to)
        elif self.kind == "wrong_init" and first:
            for name, p in named.items():
                if p.dim() >= 2 and name != self.place.cut:
                    p.mul_(0.15)
        elif self.kind == "exploding_activations":
            named[self.place.scaled].mul_(1.15)
        elif self.kind == "weight_corruption" and first:
            target = named[self.place.frozen]
            target.add_(torch.randn_like(target) * 10 * target.std())

    def loss(self, step: int, loss: Tensor) -> Tensor:
        """The loss that is differentiated."""
        if self.kind == "loss_scale":
            return loss * 2.0 ** ((step - self.start) // 2 + 1)
        if self.kind == "scale_not_undone":
            return loss * 1024.0
        if self.kind == "sign_flip":
            return -loss
        return loss * math.inf if self.kind == "inf_loss" else loss

    def gradients(self, named: Mapping[str, Tensor]) -> None:
        """What happens to the gradients before the update."""
        names = list(named)
        if self.kind == "nan_tensor":
            named[self.tensor].view(-1)[0] = math.nan
        elif self.kind == "frozen_layer":
            named[self.place.frozen].zero_()
        elif self.kind == "detached":
            for name in names[: names.index(self.place.cut)]:
                named[name].zero_()
        elif self.kind == "fp16_overflow":
            largest = max(float(g.abs().max()) for g in named.values())
            _through_half(named, 4 * 65504.0 / largest)
        elif self.kind == "fp16_underflow":
            largest = max(float(g.abs().max()) for g in named.values())
            _through_half(named, 2.0**-21 / max(largest, 1e-30))

    def momentum(self, optimizer: torch.optim.Optimizer, *, on: bool) -> None:
        """Raise the momentum while the fault lasts, and put it back."""
        if self.kind != "momentum_high":
            return
        for group in optimizer.param_groups:
            if group.setdefault("usual", group.get("momentum")):
                group["momentum"] = 0.99 if on else group["usual"]
            elif "betas" in group:
                usual = group.setdefault("usual betas", group["betas"])
                group["betas"] = (0.99, usual[1]) if on else usual


def _through_half(named: Mapping[str, Tensor], scale: float) -> None:
    for gradient in named.values():
        gradient.copy_((gradient.float() * scale).half().float() / scale)


def _wrong(y: Tensor, generator: torch.Generator) -> Tensor:
    """Targets that have nothing to do with the inputs."""
    order = torch.randperm(len(y), generator=generator)
    if y.is_floating_point():
        return -3 * y[order]
    return (y[order] + 1) % (int(y.max()) + 1)


def _shifted(y: Tensor) -> Tensor:
    """Targets off by one: class numbers from another list, or values from another unit."""
    return y + 2 * y.std() if y.is_floating_point() else (y + 1) % (int(y.max()) + 1)
