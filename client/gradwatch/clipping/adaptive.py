"""The service's rule for the norm, in the job itself: falls at once and rises slowly."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradwatch.clipping.hold import HOLD_STEPS, after_change, no_rates
from gradwatch.clipping.learned import JointPolicy, check, shrink
from gradwatch.clipping.restraint import (
    LIMIT,
    MOST,
    TICK,
    Restraint,
    is_spike,
    is_steady,
    restrain,
)
from gradwatch.clipping.stages import Scope, Situation, Stage
from gradwatch.clipping.window import MIN_NORMS, WindowStage
from gradwatch.errors import PolicyError

__all__ = ["PREFERENCES", "Adaptive"]

PREFERENCES = ("tight", "balanced", "guard")
TIGHT = 0.10
_RISE = {"tight": 0.001, "balanced": 0.001, "guard": 0.01}  # balanced: per tick


@dataclass(frozen=True)
class Adaptive(JointPolicy):
    """The joint norm is at most what the norms of the last steps say; the direction stays.

    ``c(t) = min(target(t), (1 + rise) c(t-1))``: it falls at once and rises slowly, and not at all
    for 20 steps after the learning rate changed by more than 2x within 5 steps. The target is taken
    from the logarithms of the last ``window`` norms before clipping, of steps that were finite and
    not zero; the limit of a step rests on earlier steps only. It is the rule by which the service
    recommends a threshold, without the service, and as there it has three preferences:

    - ``tight``: the lowest tenth; rises by 0.1 % per step. For a job that has been unstable.
    - ``balanced``: 2.5 times the median, but where spikes have lowered it, at the least as ``tight``.
      A norm above 3 times the median of the last 64 and of the last 16 is a spike, and each lowers
      the target to two thirds. That comes back, and the limit rises, by 0.1 % per step, after 200
      steps without a spike by 1 %. It starts as ``tight`` and opens by 22 % per step while the last
      16 norms lie close together.
    - ``guard``: the spike level, the median times ``exp(max(5 s k, ln 3))``; rises by 1 % per step.

    Two differences: where the service says that it knows nothing (a flood of non-finite steps, norms
    that are all alike) the limit stays; and in a chain it goes by the norms that the links before
    it leave.

    Args:
        quantile: Aim at this place among the norms, from 0 to 1, instead of the preference's target.
        window: Norms looked at, at least 3.
        rise: Largest rise per step (``balanced``: per tick of it), as a share, at least 0; None is
            the preference's.
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
    ``lowered``, ``quiet`` and ``opening`` are what the norms have done to a balanced limit.
    """

    def __init__(self, scope: Scope, policy: Adaptive) -> None:
        start = {"lowered": MOST, "quiet": 0.0, "opening": 1.0}
        super().__init__(scope, policy.window, level=math.inf, since=float(HOLD_STEPS), **start)
        self._policy = policy
        self._quantile = policy.quantile
        if policy.quantile is None and policy.preference == "tight":
            self._quantile = TIGHT
        self._restrained = self._quantile is None and policy.preference == "balanced"
        rise = _RISE[policy.preference] if policy.rise is None else policy.rise
        self._rise = math.log1p(rise)

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
        ticks = self._take_in(norm.log(), usable)
        free = (self.tensors["since"] >= HOLD_STEPS).to(level)
        raised = level + free * ticks * self._rise
        self.learn(usable, level=torch.minimum(self._target(), raised))
        return shrink(limit, norm)

    def _take_in(self, value: Tensor, usable: Tensor) -> Tensor | float:
        """Remember ln of a norm; return the [] ticks by which the limit may rise."""
        if not self._restrained:
            self.remember(value, usable)
            return 1.0
        state = self.tensors
        struck = is_spike(value, self.quantile(0.5), state["ring"], state["count"])
        self.remember(value, usable)
        before = Restraint(state["lowered"], state["quiet"], state["opening"])
        after, ticks = restrain(before, struck, is_steady(state["ring"], state["count"]))
        self.learn(usable, **after._asdict())
        return ticks

    def _target(self) -> Tensor:
        """[] where the level would stand without the law; infinite before the third norm."""
        if self._quantile is not None:
            aim = self.quantile(self._quantile)
        elif self._restrained:
            usual = self.quantile(0.5) + LIMIT - TICK * self.tensors["lowered"]
            aim = torch.maximum(self.quantile(TIGHT), usual)
        else:
            return self.alarm_level()
        return torch.where(self.held >= MIN_NORMS, aim, math.inf)
