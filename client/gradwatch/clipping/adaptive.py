"""The service's rule for the norm, in the job itself: falls at once and rises slowly."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradwatch.clipping.hold import HOLD_STEPS, after_change, no_rates
from gradwatch.clipping.learned import JointPolicy, check, shrink
from gradwatch.clipping.restraint import (
    FIRST,
    LIMIT,
    MOST,
    TICK,
    Restraint,
    look_back,
    restrain,
)
from gradwatch.clipping.stages import Scope, Situation, Stage
from gradwatch.clipping.window import MIN_NORMS, WindowStage, log_spread
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
      A norm that exceeds the medians of the last 64 and of the last 16 by a factor of 2.5 and by
      three spreads is a spike, and each lowers the target to two thirds. That comes back, and the
      limit rises, by 0.1 % per step, after 200 steps without a spike by 1 % while the last 16 norms lie
      close together. It holds from the second norm on, starts as ``tight``, and opens at once if the
      first 16 norms lie close together.
    - ``guard``: the spike level, the median times ``exp(max(5 s k, ln 3))``; rises by 1 % per step.

    Two differences: where the service says that it knows nothing (a flood of non-finite steps, norms
    that are all alike) the limit stays; and in a chain it goes by the norms that the links before
    it leave.

    Args:
        quantile: Aim at this place among the norms, from 0 to 1, instead of the preference's target.
        window: Norms looked at, at least 3.
        rise: Largest rise per step (``balanced``: per tick of it), as a share, at least 0; None is
            the preference's.
        initial: Limit until three norms are known (``balanced``: one); None does not clip until then.
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
    ``floor`` is the level that ``tight`` would have, ``bound`` the one above which the next norm is a spike; ``lowered``, ``quiet`` and ``opening`` are what the
    norms have done to a balanced limit.
    """

    def __init__(self, scope: Scope, policy: Adaptive) -> None:
        start = {
            "bound": math.inf,
            "floor": math.inf,
            "lowered": MOST,
            "quiet": 0.0,
            "opening": FIRST,
        }
        super().__init__(scope, policy.window, level=math.inf, since=float(HOLD_STEPS), **start)
        self._policy = policy
        self._quantile = policy.quantile
        if policy.quantile is None and policy.preference == "tight":
            self._quantile = TIGHT
        self._restrained = self._quantile is None and policy.preference == "balanced"
        rise = _RISE[policy.preference] if policy.rise is None else policy.rise
        self._rise = math.log1p(rise)
        self._shares = torch.empty(0)

    def bind(self, like: Tensor, count: int) -> None:
        super().bind(like, count)
        self.tensors["rates"] = self.tensors.get("rates", no_rates(like)).to(like)
        self._shares = torch.tensor([TIGHT, 0.5], dtype=like.dtype, device=like.device)

    def coefficients(self, now: Situation) -> Tensor:
        rates, since = after_change(self.tensors["rates"], self.tensors["since"], now.learning_rate)
        self.tensors |= {"rates": rates, "since": since}
        return super().coefficients(now)

    def judge(self, norm: Tensor, usable: Tensor) -> Tensor:
        policy, level = self._policy, self.tensors["level"]
        limit = level.exp().clamp(min=policy.minimum, max=policy.maximum or math.inf)
        limit = torch.where(level.isinf(), policy.initial or math.inf, limit)
        self.tensors["threshold"] = limit
        usable, value = usable & (norm > 0), norm.log()
        self.remember(value, usable)
        rise: Tensor | float = self._rise
        free = (self.tensors["since"] >= HOLD_STEPS).to(level)
        if self._restrained:
            target, rise = self._balanced(value, usable, free)
        elif self._quantile is None:
            target = self.alarm_level()
        else:
            target = self._known(self.quantile(self._quantile))
        self.learn(usable, level=torch.minimum(target, level + free * rise))
        return shrink(limit, norm)

    def _balanced(
        self, value: Tensor, usable: Tensor, free: Tensor
    ) -> tuple[Tensor, Tensor | float]:
        """Return [] target and largest rise, both ln, after a norm that is in the window already.

        It aims from the first norm on: three steps without a limit can cost a run that explodes.
        """
        state = self.tensors
        tight, median = self.quantile(self._shares).unbind()
        struck = value > state["bound"]
        spread = log_spread(state["ordered"], self.held, median)
        bound, steady = look_back(state["ring"], state["count"], median, spread)
        before = Restraint(state["lowered"], state["quiet"], state["opening"])
        after, ticks = restrain(before, struck, steady)
        floor = torch.minimum(self._known(tight), state["floor"] + free * self._rise)
        self.learn(usable, bound=bound, floor=floor, **after._asdict())
        usual = median + LIMIT - TICK * after.lowered
        return torch.maximum(torch.minimum(tight, floor), usual), ticks * self._rise

    def _known(self, target: Tensor) -> Tensor:
        """A target from the third norm on, infinity before."""
        return torch.where(self.held >= MIN_NORMS, target, math.inf)
