"""What a card tells to do helps: done on a small real job, the incident does not come back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradwatch_service.analysis.incidents import Incident
from gradwatch_service.analysis.optimizer_analysis import OptimizerAnalysis
from gradwatch_service.detectors.base import RunContext
from gradwatch_service.rows import StepRows
from gradwatch_wire import Manifest, TensorInfo

STEPS = 160
FAULT = 100  # step at which the trouble begins, where it has a beginning


@dataclass
class Job:
    """A training job with what may be wrong in it."""

    activation: Callable[[Tensor], Tensor] = torch.tanh
    depth: int = 3
    deviation: float | None = None  # of the initial weights; None leaves torch's own
    rate: Callable[[int], float] = lambda _: 0.05
    clear: Callable[[int], bool] = lambda _: True  # whether gradients are set to zero before a step
    inputs: Callable[[int, Tensor], Tensor] = lambda _, x: x
    same_batch: bool = False  # full-batch training: the gradient turns only if the step is too long
    tell_rate: bool = True
    edit: Callable[[int, nn.Sequential], None] = lambda _, model: None


def train(job: Job) -> StepRows:
    """Train on noisy classes and return the gradients' statistics at every step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(job.depth)), nn.Linear(16, 4))
    if job.deviation is not None:
        for parameter in layers.parameters():
            nn.init.normal_(parameter, std=job.deviation)
    named = list(layers.named_parameters())
    teacher, previous = torch.randn(16, 4), None
    x = y = teacher
    norms, bad, losses, cosines, rates = [], [], [], [], []
    for step in range(STEPS):
        if step == 0 or not job.same_batch:
            x = torch.randn(32, 16)
            y = (x @ teacher + torch.randn(32, 4)).argmax(dim=1)
        job.edit(step, layers)
        hidden = job.inputs(step, x)
        for layer in layers[:-1]:
            hidden = job.activation(layer(hidden))
        if job.clear(step):
            layers.zero_grad()
        loss = nn.functional.cross_entropy(layers[-1](hidden), y)
        loss.backward()
        grads = [p.grad for _, p in named if p.grad is not None]
        finite = [torch.nan_to_num(g, 0.0, 0.0, 0.0) for g in grads]
        flat = torch.cat([g.flatten() for g in finite])
        norms.append([float(g.norm()) for g in finite])
        bad.append([int((~torch.isfinite(g)).sum()) for g in grads])
        losses.append(loss.item())
        length = float(flat.norm() * previous.norm()) if previous is not None else 0.0
        cosines.append(float(flat @ previous) / length if length and previous is not None else 0.0)
        rates.append(job.rate(step))
        previous = flat
        if not any(bad[-1]):
            with torch.no_grad():
                torch._foreach_add_(list(layers.parameters()), grads, alpha=-rates[-1])
    tensors = (
        TensorInfo(name=n, shape=tuple(p.shape), dtype="float32", group="g") for n, p in named
    )
    finite_losses = [value if math.isfinite(value) else math.nan for value in losses]
    return StepRows(
        attempt=0,
        optimizer="default",
        rank=0,
        steps=np.arange(STEPS),
        time=np.zeros(STEPS),
        scalars={
            "loss": np.array(finite_losses),
            "learning_rate": np.array(rates) if job.tell_rate else np.full(STEPS, np.nan),
            "cosine_previous": np.array(cosines),
        },
        tensors={"norm": np.array(norms, np.float32), "nonfinite_count": np.array(bad)},
        manifest=Manifest(tensors=tuple(tensors)),
    )


def diagnose(job: Job) -> list[Incident]:
    """Return the incidents of a job, the newest form of each."""
    rows = train(job)
    state = OptimizerAnalysis.start(RunContext(run="job"))
    _, changed = OptimizerAnalysis.advance(state, {0: [rows]}, STEPS - 1, certain=True)
    return changed


def _jump(factor: float) -> Callable[[int], float]:
    return lambda step: 0.05 * (factor if step >= FAULT else 1.0)


def _poison(step: int, x: Tensor) -> Tensor:
    return torch.where(torch.rand(x.shape) < 0.1, math.nan, x) if step == FAULT else x


def _kill(step: int, model: nn.Sequential) -> None:
    if step == FAULT:
        with torch.no_grad():
            model[1].bias.fill_(-100.0)  # every unit of this layer below zero: dead behind a ReLU


CASES = {
    "exploding, learning rate": (
        Job(rate=_jump(100)),
        Job(rate=_jump(1)),
        "exploding",
        "learning_rate_change",
        "go back to the learning rate before it",
    ),
    "exploding, zero_grad": (
        Job(clear=lambda step: step < FAULT),
        Job(),
        "exploding",
        "zero_grad_missing",
        "call optimizer.zero_grad() before every backward",
    ),
    "oscillating, learning rate": (
        Job(same_batch=True, tell_rate=False, rate=lambda step: 3.0 if step >= FAULT else 0.1),
        Job(same_batch=True, tell_rate=False, rate=lambda step: 1.0 if step >= FAULT else 0.1),
        "oscillating",
        "unknown",
        "lower the learning rate",
    ),
    "nonfinite, a batch": (
        Job(inputs=_poison),
        Job(inputs=lambda step, x: torch.nan_to_num(_poison(step, x))),
        "nonfinite",
        "unknown",
        "look at the batch",
    ),
    "vanishing, dead layer": (
        Job(activation=torch.relu, edit=_kill),
        Job(activation=lambda x: nn.functional.leaky_relu(x, 0.2), edit=_kill),
        "vanishing",
        "dead_layer",
        "use a leaky activation",
    ),
    "vanishing, initialisation": (
        Job(activation=torch.sigmoid, depth=6, deviation=0.05),
        Job(activation=torch.tanh, depth=6, deviation=0.25),
        "vanishing",
        "initialisation",
        "use an initialisation that fits the activation",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_doing_what_the_card_says_ends_the_trouble(name: str) -> None:
    broken, mended, kind, cause, advice = CASES[name]
    before = [incident for incident in diagnose(broken) if incident.kind == kind]
    assert cause in {incident.cause for incident in before}
    assert any(advice in incident.next for incident in before)
    assert [incident for incident in diagnose(mended) if incident.kind == kind] == []
