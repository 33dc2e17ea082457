"""Policies at work: bound to a list of tensors, with threshold and state on the device.

:mod:`gradwatch.clipping.passes` puts them in order. A *limit* stage says how large an element may be, a
*scale* stage by what to multiply a tensor, a *unit* stage scales parts of tensors itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradwatch.clipping.norms import joint_norm, norms_of_order
from gradwatch.clipping.policies import Agc, Norm, PerTensor, Policy, Recommended, Value, ValueRms
from gradwatch.clipping.units import clip_units_
from gradwatch.kernels import Gradients, Row

__all__ = ["Reduce", "Scope", "Situation", "Stage", "make_stage"]

# A norm this little above its limit counts as within it. Rounding leaves a scaled float32 gradient up
# to 2^-24 above; scaling it again would change it for nothing and make clipping twice differ from once.
_SLACK = 1 + 2.0**-22

# Turns this rank's [T] sums into those of the whole tensors; told "sum" or "max".
Reduce = Callable[[Tensor, str], Tensor]


@dataclass(frozen=True, slots=True)
class Scope:
    """Which tensors a stage clips and when.

    Attributes:
        members: One flag per tensor; None is all of them.
        start: First step it is active at.
        stop: First step it is no longer active at; None is never.
        follow: The ``recommended`` policy around it, if any.
    """

    members: tuple[bool, ...] | None = None
    start: int = 0
    stop: int | None = None
    follow: Recommended | None = None


@dataclass(slots=True)
class Situation:
    """What a stage may look at in a step.

    Attributes:
        grads: T gradients as they stand now.
        parameters: Their parameters, where the caller gave them.
        rows: [len(Row), T] as a kernel writes them, up to date.
        numel: [T] elements of each gradient.
        reduce: How to join norms over ranks; None where every rank has whole tensors.
        learning_rate: The rate of this step, where the caller knows it.
        measured: Further [T] statistics by name that stages came by; NaN where one has no value.
    """

    grads: Gradients
    parameters: Sequence[Tensor | None] | None
    rows: Tensor
    numel: Tensor
    reduce: Reduce | None
    learning_rate: float | Tensor | None = None
    measured: dict[str, Tensor] = field(default_factory=dict)

    def norms(self, order: float) -> Tensor:
        """Return the [T] norms of the whole tensors as they stand now, held infinities included."""
        if order == 2:
            norms, held = self.rows[Row.NORM_AFTER], self.rows[Row.HELD]
            norms = torch.where(held > 0, torch.hypot(norms, held.sqrt()), norms)
        else:
            norms = norms_of_order(self.grads, order, self.numel)
        if self.reduce is None:
            return norms
        if order == math.inf:
            return self.reduce(norms, "max")
        return self.reduce(norms.pow(order), "sum").pow(1 / order)


class Stage:
    """One policy with its threshold and state. :meth:`bind` comes before everything else.

    Attributes:
        scope: Which tensors it clips and when.
        tensors: Threshold and state by name, each [] or [T].
        version: Recommendation in force; 0 is the policy's own threshold.
        columns: Further statistics that it puts into ``Situation.measured``.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[Literal["limit", "scale", "unit"]]

    def __init__(self, scope: Scope, threshold: float) -> None:
        self.scope = scope
        self.tensors: dict[str, Tensor] = {}
        self.version = 0
        self.mask: Tensor | None = None
        self._initial = {"threshold": threshold}  # value that a tensor added later starts with
        self._rows: tuple[str, ...] = ()  # names that are [T] from the start, the others are []

    @property
    def threshold(self) -> Tensor:
        """The limit in force, [] or [T]."""
        return self.tensors["threshold"]

    @property
    def differs(self) -> bool:
        """Whether tensors may have different limits."""
        return self.scope.members is not None or "threshold" in self._rows

    def bind(self, like: Tensor, count: int) -> None:
        """Have everything in ``like``'s dtype and on its device, for ``count`` tensors.

        Called again when tensors were added or moved, or a state was loaded; what is known is kept.
        """
        members = self.scope.members
        self.mask = None if members is None else torch.tensor(members, device=like.device)
        for name, initial in self._initial.items():
            old = self.tensors.get(name)
            in_rows = name in self._rows if old is None else old.dim() > 0
            shape = (count,) if in_rows else ()
            new = torch.full(shape, initial, dtype=like.dtype, device=like.device)
            if old is not None:
                new[: len(old)].copy_(old) if in_rows else new.copy_(old)
            self.tensors[name] = new

    def is_active(self, step: int) -> bool:
        """Say whether this stage clips at a step."""
        stop = self.scope.stop
        return self.scope.start <= step and (stop is None or step < stop)

    def follow(
        self, threshold: float | Mapping[str, float], version: int, names: Sequence[str]
    ) -> None:
        """Clip with a recommended threshold from now on; nothing waits for the device.

        Args:
            threshold: One for all, or by tensor name; names left out keep the policy's own.
            version: Version of the recommendation.
            names: Names of the bound tensors.
        """
        old = self.threshold
        if isinstance(threshold, Mapping):
            own = self._initial["threshold"]
            values = [float(threshold.get(name, own)) for name in names]
            new = torch.tensor(values, dtype=old.dtype).to(old.device, non_blocking=True)
        else:
            new = torch.full_like(old, threshold)
        self.tensors["threshold"] = new
        self.version = version

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that must survive a restart."""
        followed = {"threshold"} if self.version else set()
        return {n: t for n, t in self.tensors.items() if n != "threshold" or n in followed}

    def limits(self) -> Tensor:
        """Return how large an element may be, [] or [T] (limit stages)."""
        return self.threshold

    def coefficients(self, now: Situation) -> Tensor:
        """Return what to multiply each tensor by, [] or [T], at most 1 (scale stages)."""
        raise NotImplementedError

    def clip_units_(self, now: Situation) -> None:
        """Scale units in place and bring ``now.rows`` up to date (unit stages)."""
        raise NotImplementedError

    def update(self, now: Situation) -> None:
        """Learn from the finished step."""


class _Value(Stage):
    kind = "limit"


class _ValueRms(Stage):
    """Keeps a bias-corrected exponential mean of squares, as Adam does: ``square / weight``."""

    kind = "limit"

    def __init__(self, policy: ValueRms, scope: Scope) -> None:
        super().__init__(scope, math.inf)
        self._initial |= {"square": 0.0, "weight": 0.0}
        self._rows = ("threshold", "square", "weight")
        self._policy = policy

    def limits(self) -> Tensor:
        square = self.tensors["square"]
        rms = (square / self.tensors["weight"]).sqrt()
        # A tensor that was never seen, or only as zeros, says nothing about its scale.
        limits = torch.where(square > 0, rms * self._policy.factor, math.inf)
        self.tensors["threshold"] = limits
        return limits

    def update(self, now: Situation) -> None:
        rows = now.rows
        usable = (rows[Row.PRESENT] > 0) & (rows[Row.NONFINITE] == 0)
        new = rows[Row.NORM_AFTER].square() / now.numel.clamp(min=1)
        for name, value in (("square", new), ("weight", torch.ones_like(new))):
            old = self.tensors[name]
            self.tensors[name] = torch.where(
                usable, torch.lerp(value, old, self._policy.decay), old
            )


class _Norm(Stage):
    kind = "scale"

    def __init__(self, policy: Norm, scope: Scope) -> None:
        super().__init__(scope, policy.max_norm)
        self._policy = policy

    def coefficients(self, now: Situation) -> Tensor:
        norms = now.norms(self._policy.norm_type)
        if self.mask is not None:
            norms = torch.where(self.mask, norms, 0)
        total = joint_norm(norms, self._policy.norm_type)
        return _coefficient(self.threshold, total + self._policy.epsilon)


class _PerTensor(Stage):
    kind = "scale"

    def __init__(self, policy: PerTensor, scope: Scope) -> None:
        super().__init__(scope, policy.max_norm)
        # The service recommends one per tensor; what is reported must not change shape on the way.
        self._rows = ("threshold",) if scope.follow else ()

    def coefficients(self, now: Situation) -> Tensor:
        return _coefficient(self.threshold, now.norms(2))


class _Agc(Stage):
    kind = "unit"
    columns = ("unit_ratio", "weight_norm")

    def __init__(self, policy: Agc, scope: Scope) -> None:
        super().__init__(scope, policy.ratio)
        self._epsilon = policy.epsilon

    def clip_units_(self, now: Situation) -> None:
        found = clip_units_(
            now.grads,
            now.parameters,
            now.rows,
            ratio=self.threshold,
            epsilon=self._epsilon,
            mask=self.mask,
        )
        for name, values in zip(self.columns, found, strict=True):
            known = now.measured.get(name, values)
            now.measured[name] = torch.where(values.isnan(), known, values)


def _coefficient(limit: Tensor, norm: Tensor) -> Tensor:
    return torch.where(norm > limit * _SLACK, limit / norm, 1)


def make_stage(policy: Policy, scope: Scope) -> Stage:
    """Bind a policy that consists of one pass."""
    match policy:
        case Value(limit):
            return _Value(scope, limit)
        case ValueRms():
            return _ValueRms(policy, scope)
        case Norm():
            return _Norm(policy, scope)
        case PerTensor():
            return _PerTensor(policy, scope)
        case Agc():
            return _Agc(policy, scope)
        case _:
            stage: Stage = policy.stage(scope)
            return stage
