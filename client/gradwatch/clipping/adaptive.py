"""The service's rule for the norm, in the job itself: falls at once and rises slowly."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gradwatch.clipping.hold import HOLD_STEPS, after_change, no_rates
from gradwatch.clipping.learned import JointPolicy, check, shrink
from gradwatch.clipping.stages import Scope, Situation, Stage
from gradwatch.clipping.window import MIN_NORMS, WindowStage
from gradwatch.errors import PolicyError

__all__ = ["PREFERENCES", "Adaptive"]


class Aim(NamedTuple):
    """What a preference stands for: the target's place among the norms, None for the spike level."""

    quantile: float | None
    rise: float


PREFERENCES = {
    "tight": Aim(0.10, 0.001),
    "balanced": Aim(0.25, 0.001),
    "guard": Aim(None, 0.01),
}


@dataclass(frozen=True)
class Adaptive(JointPolicy):
    """The joint norm is at most what the norms of the last steps say; the direction stays.

    ``c(t) = min(target(t), (1 + rise) c(t-1))``: it falls at once and rises slowly, and not at all
    for 20 steps after the learning rate changed by more than 2x within 5 steps. The target is taken
    from the logarithms of the last ``window`` norms before clipping, of steps that were finite and
    not zero; the limit of a step rests on earlier steps only. It is the rule by which the service
    recommends a threshold, without the service, and as there it has three preferences:

    ============ =================================== ============ ============================
    preference   target                              rise         meant to clip
    ============ =================================== ============ ============================
    ``tight``    lowest tenth                        0.1 %        nine steps of ten
    ``balanced`` lower quartile                      0.1 %        three steps of four, a little
    ``guard``    spike level: the median times       1 %          spikes only
                 ``exp(max(5 s k, ln 3))``
    ============ =================================== ============ ============================

    Two differences: where the service says that it knows nothing (a flood of non-finite steps, norms
    that are all alike) the limit stays; and in a chain it goes by the norms that the links before
    it leave.

    Args:
        quantile: The target's place among the norms, from 0 to 1; None is the preference's.
        window: Norms looked at, at least 3.
        rise: Largest rise per step, as a share, at least 0; None is the preference's.
        initial: Limit until three norms are known; None does not clip until then.
        minimum: The limit is never below; None is no bound.
        maximum: The limit is never above; None is no bound.
        preference: ``tight``, ``balanced`` or ``guard``.

    Source:
        Our own; docs/recommendation.md has the reasons and figures.
    """

    quantile: float | None = None
    window: int = 64
    rise: float | None = None
    initial: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    preference: str = "balanced"
    kind: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        if self.preference not in PREFERENCES:
            raise PolicyError(
                f"adaptive(preference={self.preference!r}): choose {', '.join(PREFERENCES)}."
            )
        check(self, "adaptive", "quantile", least=0, most=1, optional=True)
        check(self, "adaptive", "window", whole=True, least=MIN_NORMS, most=100_000)
        check(self, "adaptive", "rise", least=0, most=1, optional=True)
        for field in ("initial", "minimum", "maximum"):
            check(self, "adaptive", field, above=0, optional=True)
        low, high = self.minimum, self.maximum
        if low is not None and high is not None and low > high:
            raise PolicyError(
                f"adaptive(minimum={low!r}, maximum={high!r}): the minimum is above the maximum."
            )
        if self.quantile is not None and self.preference == "guard":
            raise PolicyError(
                f"adaptive(quantile={self.quantile!r}, preference='guard'): guard aims at the spike "
                "level, not at a quantile; leave one of the two out."
            )

    def stage(self, scope: Scope) -> Stage:
        """Return the stage that carries it out."""
        return _Adaptive(scope, self)


class _Adaptive(WindowStage):
    """``ring`` holds ln norm; ``level`` is ln of the limit, infinite while nothing is known.

    ``rates`` and ``since`` follow the learning rate, through non-finite steps too: it is no gradient.
    """

    def __init__(self, scope: Scope, policy: Adaptive) -> None:
        super().__init__(scope, policy.window, level=math.inf, since=float(HOLD_STEPS))
        self._policy = policy
        aim = PREFERENCES[policy.preference]
        self._quantile = aim.quantile if policy.quantile is None else policy.quantile
        self._rise = math.log1p(aim.rise if policy.rise is None else policy.rise)

    def bind(self, like: Tensor, count: int) -> None:
        super().bind(like, count)
        self.tensors["rates"] = self.tensors.get("rates", no_rates(like)).to(like)

    def coefficients(self, now: Situation) -> Tensor:
        rates, since = after_change(self.tensors["rates"], self.tensors["since"], now.learning_rate)
        self.tensors |= {"rates": rates, "since": since}
        return super().coefficients(now)

    def judge(self, norm: Tensor, usable: Tensor) -> Tensor:
        policy, level = self._policy, self.tensors["level"]
        limit = level.exp().clamp(min=policy.minimum, max=policy.maximum or math.inf)
        limit = torch.where(level.isinf(), policy.initial or math.inf, limit)
        self.tensors["threshold"] = limit
        usable = usable & (norm > 0)
        self.remember(norm.log(), usable)
        rise = (self.tensors["since"] >= HOLD_STEPS).to(level) * self._rise
        self.learn(usable, level=torch.minimum(self._target(), level + rise))
        return shrink(limit, norm)

    def _target(self) -> Tensor:
        """[] where the level would stand without the law; infinite before the third norm."""
        if self._quantile is None:
            return self.alarm_level()
        return torch.where(self.held >= MIN_NORMS, self.quantile(self._quantile), math.inf)
