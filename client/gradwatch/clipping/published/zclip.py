"""ZClip: norms that stand out from their exponential mean are drawn back to it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradwatch.clipping.learned import JointPolicy, JointStage, check, shrink
from gradwatch.clipping.stages import Scope, Stage

__all__ = ["ZClip"]

_EPSILON = 1e-6  # the authors'


@dataclass(frozen=True)
class ZClip(JointPolicy):
    """A joint norm more than ``z`` deviations above its mean is drawn back, the more the larger.

    The first ``warmup`` norms give mean and variance. Then, with ``score = (n - mean) / (sd +
    1e-6)`` above ``z``, the norm becomes ``factor (mean + z^2 sd / score)``, and that value enters
    the averages instead of the norm; ``max_norm`` limits whatever remains.

    Differences from the authors' code: a non-finite step enters neither warm-up nor averages;
    gradients within the limit keep their bits (the code scales every step by n / (n + 1e-6)); only
    the recommended mode (``zscore`` with ``adaptive_scaling``) is there, without skipping. A
    ``threshold`` that is reported for a step without a spike is the norm from which on it would
    have been one.

    Args:
        z: Deviations that make a spike, above 0.
        decay: Share of the averages that stays at each step, above 0 and below 1.
        warmup: Steps that only learn, at least 2.
        max_norm: Fixed limit on top, in warm-up too. The code's default is 1.0; the paper's
            algorithm has none: None.
        factor: Multiplies the limit of a spike.

    Source:
        Kumar et al. 2025, "ZClip: Adaptive spike mitigation for LLM pre-training", Algorithm 1,
        https://arxiv.org/abs/2504.02507
    """

    z: float = 2.5
    decay: float = 0.97
    warmup: int = 25
    max_norm: float | None = 1.0
    factor: float = 1.0
    kind: ClassVar[str] = "zclip"

    def __post_init__(self) -> None:
        check(self, "zclip", "z", above=0)
        check(self, "zclip", "decay", above=0, below=1)
        check(self, "zclip", "warmup", whole=True, least=2, most=1_000_000)
        check(self, "zclip", "max_norm", above=0, optional=True)
        check(self, "zclip", "factor", above=0)

    def stage(self, scope: Scope) -> Stage:
        """Return the stage that carries it out."""
        return _ZClip(scope, self)


class _ZClip(JointStage):
    """In warm-up ``mean`` and ``variance`` are those of the norms so far (Welford's recurrence)."""

    def __init__(self, scope: Scope, policy: ZClip) -> None:
        super().__init__(scope, mean=0.0, variance=0.0, count=0.0)
        self._policy = policy
        self._cap = policy.max_norm or math.inf

    def judge(self, norm: Tensor, usable: Tensor) -> Tensor:
        policy, mean = self._policy, self.tensors["mean"]
        spread = self.tensors["variance"].sqrt()
        deviation = spread + _EPSILON
        warm = self.tensors["count"] >= policy.warmup
        score = (norm - mean) / deviation
        spike = warm & (score > policy.z)
        drawn = policy.factor * (mean + policy.z**2 * spread / score)
        limit = torch.where(spike, drawn, torch.where(warm, mean + policy.z * deviation, math.inf))
        self.tensors["threshold"] = limit.clamp(max=self._cap)
        self._take_in(torch.where(spike, drawn, norm), warm, usable)
        return shrink(self.threshold, norm, _EPSILON)

    def _take_in(self, value: Tensor, warm: Tensor, usable: Tensor) -> None:
        count, mean, variance = (self.tensors[n] for n in ("count", "mean", "variance"))
        stays = torch.where(warm, self._policy.decay, count / (count + 1))
        new = stays * mean + (1 - stays) * value
        # The code takes the distance from the new mean; Welford needs both.
        distance = torch.where(warm, value - new, value - mean)
        square = distance * (value - new)
        self.learn(
            usable,
            count=count + 1,
            mean=new,
            variance=stays * variance + (1 - stays) * square,
        )
