"""AdaGC: each tensor's norm against its own exponential mean."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradwatch.clipping.learned import JointPolicy, check, nonfinite
from gradwatch.clipping.norms import joint_norm
from gradwatch.clipping.stages import Scope, Situation, Stage
from gradwatch.kernels import Row

__all__ = ["AdaGC"]

_EPSILON = 1e-8  # published


@dataclass(frozen=True)
class AdaGC(JointPolicy):
    """Each tensor's norm is at most ``ratio`` times the exponential mean of its clipped norms.

    In its first ``warmup - 1`` steps all tensors are scaled together to a joint norm of
    ``max_norm``, and the smallest norm of each becomes its mean to start with. That start, and
    means that grow by at most 0.1 % per step, make it clip most steps of ordinary noise; a tensor
    whose gradient was zero once in warm-up stays nearly frozen. Both are as published.

    Differences: a tensor's non-finite steps neither change its mean nor count for its warm-up, so
    each tensor counts its own steps, and one that is added later starts with its own warm-up.
    ``threshold`` is reported per tensor, and as ``max_norm`` in warm-up.

    Args:
        ratio: Largest norm in units of the mean, above 0.
        decay: Share of the mean that stays at each step, above 0 and below 1.
        warmup: First step, counted from 1, at which a tensor goes by its own mean; at least 2.
        max_norm: Largest joint norm in warm-up, above 0.

    Source:
        Wang et al. 2025, "AdaGC: Improving training stability for large language model
        pretraining", Algorithm 1, https://arxiv.org/abs/2502.11034; defaults of pytorch_optimizer.
    """

    ratio: float = 1.05
    decay: float = 0.98
    warmup: int = 100
    max_norm: float = 1.0
    kind: ClassVar[str] = "adagc"

    def __post_init__(self) -> None:
        check(self, "adagc", "ratio", above=0)
        check(self, "adagc", "decay", above=0, below=1)
        check(self, "adagc", "warmup", whole=True, least=2, most=1_000_000)
        check(self, "adagc", "max_norm", above=0)

    def stage(self, scope: Scope) -> Stage:
        """Return the stage that carries it out."""
        return _AdaGC(scope, self)


class _AdaGC(Stage):
    kind: ClassVar[Literal["limit", "scale", "unit"]] = "scale"

    def __init__(self, scope: Scope, policy: AdaGC) -> None:
        super().__init__(scope, math.inf)
        self._initial |= {"mean": 0.0, "count": 0.0}
        self._rows = ("threshold", "mean", "count")
        self._policy = policy

    def coefficients(self, now: Situation) -> Tensor:
        policy, mean, count = self._policy, self.tensors["mean"], self.tensors["count"]
        norms = now.norms(2)
        joint = joint_norm(norms if self.mask is None else torch.where(self.mask, norms, 0))
        early = count + 1 < policy.warmup
        together = policy.max_norm / (joint + _EPSILON)
        limit = policy.ratio * mean.clamp(min=_EPSILON)
        factor = torch.where(early, together, limit / norms.clamp(min=_EPSILON)).clamp(max=1)
        self.tensors["threshold"] = torch.where(early, policy.max_norm, limit)
        self._take_in(norms * factor, early, (nonfinite(now) <= 0) & (now.rows[Row.PRESENT] > 0))
        return factor

    def _take_in(self, clipped: Tensor, early: Tensor, usable: Tensor) -> None:
        mean, count = self.tensors["mean"], self.tensors["count"]
        least = torch.where(count > 0, torch.minimum(mean, clipped), clipped)
        new = torch.where(early, least, torch.lerp(clipped, mean, self._policy.decay))
        self.tensors["mean"] = torch.where(usable, new, mean)
        self.tensors["count"] = torch.where(usable, count + 1, count)

    def state(self) -> dict[str, Tensor]:
        return dict(self.tensors)
