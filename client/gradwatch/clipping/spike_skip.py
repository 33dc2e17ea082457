"""Leaving out the update of a step whose norm stands out."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradwatch.clipping.learned import JointPolicy, check
from gradwatch.clipping.stages import Scope, Stage
from gradwatch.clipping.window import MIN_NORMS, WindowStage

__all__ = ["SpikeSkip"]


@dataclass(frozen=True)
class SpikeSkip(JointPolicy):
    """A step whose joint norm stands out becomes zero in every finite element; others stay as they are.

    A norm stands out above ``median exp(max(5 s k, ln 3))`` of the last ``window`` norms that did
    not, with ``s = max(0.08, 1.4826 MAD)`` of their logarithms and ``k = 1 + 30 / n``: the service's
    ``spike_threshold``. Decided on the device. An optimizer that is stepped with zeros still applies
    momentum and weight decay.

    Args:
        give_up: After this many skipped steps in a row the next one is let through, and the new
            level is learned from nothing: it is no spike. At least 1.
        window: Norms looked at, at least 3.

    Source:
        Our own; the rule of OLMo-core's SkipStepOptimizer (six deviations of 128 steps) in the same
        spirit, which one NaN makes skip 129 steps.
    """

    give_up: int = 5
    window: int = 64
    kind: ClassVar[str] = "spike_skip"

    def __post_init__(self) -> None:
        check(self, "spike_skip", "give_up", whole=True, least=1, most=1_000_000)
        check(self, "spike_skip", "window", whole=True, least=MIN_NORMS, most=100_000)

    def stage(self, scope: Scope) -> Stage:
        """Return the stage that carries it out."""
        return _SpikeSkip(scope, self)


class _SpikeSkip(WindowStage):
    """``ring`` holds ln norm; ``skipped`` counts skipped steps in a row."""

    def __init__(self, scope: Scope, policy: SpikeSkip) -> None:
        super().__init__(scope, policy.window, skipped=0.0)
        self._give_up = policy.give_up

    def judge(self, norm: Tensor, usable: Tensor) -> Tensor:
        limit = self.alarm_level().exp()
        self.tensors["threshold"] = limit
        spike = norm > limit
        gives_up = usable & spike & (self.tensors["skipped"] >= self._give_up)
        skips = spike & ~gives_up
        self._forget(gives_up)
        self.learn(usable, skipped=torch.where(skips, self.tensors["skipped"] + 1, 0))
        self.remember(norm.log(), usable & ~skips & (norm > 0))
        return torch.where(skips, 0.0, torch.ones_like(norm))

    def _forget(self, gives_up: Tensor) -> None:
        empty = torch.full_like(self.tensors["ring"], math.inf)
        none = torch.zeros_like(self.tensors["count"])
        self.learn(gives_up, ring=empty, ordered=empty, count=none)
