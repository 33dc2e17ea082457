"""Our own local rule: a low quantile that falls at once and rises slowly."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradwatch.clipping.learned import JointPolicy, check, shrink
from gradwatch.clipping.stages import Scope, Stage
from gradwatch.clipping.window import WindowStage
from gradwatch.errors import PolicyError

__all__ = ["Adaptive"]

_MIN_NORMS = 3  # as the service: fewer say nothing


@dataclass(frozen=True)
class Adaptive(JointPolicy):
    """The joint norm is at most a low quantile of the norms of the last steps; the direction stays.

    ``c(t) = min(target(t), (1 + rise) c(t-1))``, with the target taken from the logarithms of the
    last ``window`` norms before clipping, of steps that were finite and not zero. The limit of a
    step rests on earlier steps only. It is the rule by which the service recommends a threshold
    (``balanced``; ``quantile=0.1`` is ``tight``), without the service, and with two differences: it
    does not see the learning rate, so it does not hold still after a change of it; and in a chain
    it goes by the norms that the links before it leave.

    Args:
        quantile: The target's place among the norms, at least 0 and at most 1. At 0.25 three steps
            of four are clipped a little: a limit at or below the middle is what holds explosions.
        window: Norms looked at, at least 3.
        rise: Largest rise per step, as a share, at least 0.
        initial: Limit until three norms are known; None does not clip until then.
        minimum: The limit is never below; None is no bound.
        maximum: The limit is never above; None is no bound.

    Source:
        Our own; docs/recommendation.md has the reasons and figures.
    """

    quantile: float = 0.25
    window: int = 64
    rise: float = 0.001
    initial: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    kind: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        check(self, "adaptive", "quantile", least=0, most=1)
        check(self, "adaptive", "window", whole=True, least=_MIN_NORMS, most=100_000)
        check(self, "adaptive", "rise", least=0, most=1)
        for field in ("initial", "minimum", "maximum"):
            check(self, "adaptive", field, above=0, optional=True)
        low, high = self.minimum, self.maximum
        if low is not None and high is not None and low > high:
            raise PolicyError(
                f"adaptive(minimum={low!r}, maximum={high!r}): the minimum is above the maximum."
            )

    def stage(self, scope: Scope) -> Stage:
        """Return the stage that carries it out."""
        return _Adaptive(scope, self)


class _Adaptive(WindowStage):
    """``ring`` holds ln norm; ``level`` is ln of the limit, infinite while nothing is known."""

    def __init__(self, scope: Scope, policy: Adaptive) -> None:
        super().__init__(scope, policy.window, level=math.inf)
        self._policy = policy

    def judge(self, norm: Tensor, usable: Tensor) -> Tensor:
        policy, level = self._policy, self.tensors["level"]
        limit = level.exp().clamp(min=policy.minimum, max=policy.maximum or math.inf)
        limit = torch.where(level.isinf(), policy.initial or math.inf, limit)
        self.tensors["threshold"] = limit
        usable = usable & (norm > 0)
        self.remember(norm.log(), usable)
        target = torch.where(self.held >= _MIN_NORMS, self.quantile(policy.quantile), math.inf)
        self.learn(usable, level=torch.minimum(target, level + math.log1p(policy.rise)))
        return shrink(limit, norm)
