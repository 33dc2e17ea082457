"""The geometric tracker of a quantile of Andrew et al."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradwatch.clipping.learned import JointPolicy, JointStage, check, shrink
from gradwatch.clipping.stages import Scope, Stage

__all__ = ["Quantile"]


@dataclass(frozen=True)
class Quantile(JointPolicy):
    """The joint norm is at most ``C``, which grows after a step above it and shrinks after others.

    ``C <- C exp(-rate (b - share))``, with ``b`` 1 if the step's norm was at most ``C``: in the long
    run ``share`` of the steps are not clipped, whatever their distribution.

    Differences from the paper: ``b`` is that of one norm per step, not the mean over the clients of
    a round, and carries no noise for privacy; a non-finite step does not move ``C``.

    Args:
        share: Share of steps to leave alone, above 0 and below 1.
        rate: Speed; 0.02 wobbles by about 5 %, the published 0.2 by about 19 %.
        initial: ``C`` of the first step, in gradient units.

    Source:
        Andrew et al. 2021, "Differentially private learning with adaptive clipping", section 2;
        https://arxiv.org/abs/1905.03871; defaults of tensorflow-federated's gaussian_adaptive.
    """

    share: float = 0.5
    rate: float = 0.2
    initial: float = 0.1
    kind: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        check(self, "quantile", "share", above=0, below=1)
        check(self, "quantile", "rate", above=0, most=10)
        check(self, "quantile", "initial", above=0)

    def stage(self, scope: Scope) -> Stage:
        """Return the stage that carries it out."""
        return _Quantile(scope, self)


class _Quantile(JointStage):
    def __init__(self, scope: Scope, policy: Quantile) -> None:
        super().__init__(scope, limit=policy.initial)
        self._policy = policy

    def judge(self, norm: Tensor, usable: Tensor) -> Tensor:
        limit = self.tensors["limit"]
        self.tensors["threshold"] = limit
        moved = limit * torch.exp(
            -self._policy.rate * ((norm <= limit).to(limit) - self._policy.share)
        )
        self.learn(usable, limit=moved)
        return shrink(limit, norm)
