"""What to do with gradients: frozen, picklable descriptions. ``gradwatch.clip`` makes them.

A policy holds numbers and nothing else; a stage gives it tensors and state, a kernel carries it out.
The first sentence of each says what holds after clipping.
"""

import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from gradwatch.errors import PolicyError

__all__ = [
    "Agc",
    "Chain",
    "Norm",
    "Patterns",
    "PerTensor",
    "Policy",
    "Recommended",
    "Schedule",
    "Value",
    "ValueRms",
    "as_policy",
    "policy_to_json",
    "walk",
]

_HOW = (
    "use gradwatch.clip.value(c) to limit every element or gradwatch.clip.norm(c) to limit the norm"
)


class BarePolicyError(PolicyError, TypeError):
    """Something that is not a policy was given where a policy belongs."""


@dataclass(frozen=True)
class Policy:
    """Base of every policy. Equal policies are interchangeable; all of them pickle.

    One of your own is a frozen dataclass derived from this, with a ``kind`` and a ``stage``.
    """

    kind: ClassVar[str] = ""

    def stage(self, scope: Any) -> Any:  # noqa: ARG002 -- for those that derive from this class
        """Return the :class:`gradwatch.clipping.Stage` of this policy, for policies of one pass.

        Args:
            scope: The tensors and steps it is for; hand it on to the Stage.
        """
        raise PolicyError(f"{type(self).__name__} has no stage: nothing says how to clip by it.")


@dataclass(frozen=True)
class Value(Policy):
    """Every element lies in ``[-limit, +limit]``, in the gradient's own dtype.

    Zero-centred: signs stay. The direction may turn (``cosine_after`` says by how much).

    Args:
        limit: Largest absolute value an element may keep, in gradient units. Finite, above 0.
    """

    limit: float
    kind: ClassVar[str] = "value"

    def __post_init__(self) -> None:
        _positive(self, "value", "limit")


@dataclass(frozen=True)
class Norm(Policy):
    """The joint norm of all gradients is at most ``max_norm``; their direction stays.

    Args:
        max_norm: Largest joint norm, in gradient units. Finite, above 0.
        norm_type: Order of the norm, above 0; ``inf`` limits the largest element by scaling.
        epsilon: Added to the norm before dividing. 0 as published; torch's own function uses 1e-6.

    Source:
        Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural networks",
        Algorithm 1, https://arxiv.org/abs/1211.5063
    """

    max_norm: float
    norm_type: float = 2.0
    epsilon: float = 0.0
    kind: ClassVar[str] = "norm"

    def __post_init__(self) -> None:
        _positive(self, "norm", "max_norm")
        _positive(self, "norm", "norm_type", infinite=True)
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise PolicyError(f"norm(epsilon={self.epsilon!r}): give a finite number, at least 0.")


@dataclass(frozen=True)
class PerTensor(Policy):
    """The L2 norm of each gradient tensor is at most ``max_norm``.

    Args:
        max_norm: Largest norm of one tensor, in gradient units. Finite, above 0.
    """

    max_norm: float
    kind: ClassVar[str] = "per_tensor"

    def __post_init__(self) -> None:
        _positive(self, "per_tensor", "max_norm")


@dataclass(frozen=True)
class Agc(Policy):
    """The gradient of each unit is at most ``ratio`` times the norm of that unit's weights.

    A unit is one row of a matrix, one filter of a convolution, a whole vector or scalar.

    Args:
        ratio: Largest gradient norm per weight norm. Finite, above 0.
        epsilon: Weights smaller than this count as this, so that weights that start at zero (LoRA's
            B, residual branches) can move.

    Source:
        Brock et al. 2021, "High-performance large-scale image recognition without normalization",
        https://arxiv.org/abs/2102.06171
    """

    ratio: float = 0.01
    epsilon: float = 1e-3
    kind: ClassVar[str] = "agc"

    def __post_init__(self) -> None:
        _positive(self, "agc", "ratio")
        _positive(self, "agc", "epsilon")


@dataclass(frozen=True)
class ValueRms(Policy):
    """Every element lies within ``factor`` times the recent root mean square of its tensor.

    The root mean square is an exponential average over earlier steps, taken after clipping, so one
    spike lifts it little and a lasting change of level is followed. A tensor's first step is not
    clipped: nothing is known yet. Steps with a non-finite element do not enter.

    Args:
        factor: Limit in units of the root mean square. Elements of a Gaussian gradient reach
            about 5 in ten million. Finite, above 1.
        decay: Share of the average that stays at each step, above 0 and below 1.
    """

    factor: float
    decay: float = 0.99
    kind: ClassVar[str] = "value_rms"

    def __post_init__(self) -> None:
        _positive(self, "value_rms", "factor")
        _positive(self, "value_rms", "decay")
        if self.factor <= 1:
            raise PolicyError(f"value_rms(factor={self.factor!r}): must be above 1.")
        if self.decay >= 1:
            raise PolicyError(f"value_rms(decay={self.decay!r}): must be below 1.")


@dataclass(frozen=True)
class Recommended(Policy):
    """Clips as ``base`` does, with the threshold that the service recommends once there is one.

    Args:
        base: What is clipped, and the threshold until a recommendation arrives and whenever the
            service is away from the start.
        minimum: Recommendations below are refused; None is no bound.
        maximum: Recommendations above are refused; None is no bound.
        interval: The threshold changes only at steps that this number divides.
    """

    base: "Value | Norm | PerTensor | Agc"
    minimum: float | None = None
    maximum: float | None = None
    interval: int = 50
    kind: ClassVar[str] = "recommended"

    def __post_init__(self) -> None:
        if not isinstance(self.base, Value | Norm | PerTensor | Agc):
            raise BarePolicyError(
                f"recommended(base={self.base!r}): give a policy with a threshold; {_HOW}, "
                "or per_tensor(c), agc(ratio)."
            )
        for bound in ("minimum", "maximum"):
            if getattr(self, bound) is not None:
                _positive(self, "recommended", bound)
        low, high = self.minimum, self.maximum
        if low and high and low > high:
            raise PolicyError(
                f"recommended(minimum={low!r}, maximum={high!r}): the minimum is above the maximum."
            )
        if not _is_int(self.interval) or self.interval < 1:
            raise PolicyError(
                f"recommended(interval={self.interval!r}): give a whole number of steps from 1."
            )


@dataclass(frozen=True)
class Schedule(Policy):
    """From each step on, the policy given for it; before the first one, the first.

    Args:
        entries: Pairs of step and policy, steps rising from 0 or above.
    """

    entries: tuple[tuple[int, Policy], ...]
    kind: ClassVar[str] = "schedule"

    def __post_init__(self) -> None:
        if not self.entries or not all(_is_int(step) and step >= 0 for step, _ in self.entries):
            raise PolicyError(
                f"schedule({dict(self.entries)!r}): give at least one entry; steps count from 0, whole numbers."
            )


@dataclass(frozen=True)
class Chain(Policy):
    """What each policy promises about its own output; they run in order, each on the last's result.

    Args:
        policies: At least one.
    """

    policies: tuple[Policy, ...]
    kind: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        if not self.policies:
            raise PolicyError("chain(): give at least one policy; clip=None clips nothing.")


@dataclass(frozen=True)
class Patterns(Policy):
    """Each tensor is clipped by the policy of the first pattern that its name matches.

    A tensor that matches none, or whose policy is None, is only measured. A ``norm`` policy here
    limits the joint norm of the tensors that it was given.

    Args:
        entries: Pairs of shell-style pattern and policy.
    """

    entries: tuple[tuple[str, Policy | None], ...]
    kind: ClassVar[str] = "patterns"

    def __post_init__(self) -> None:
        if not self.entries:
            raise PolicyError("An empty mapping of policies clips nothing; say clip=None.")


def as_policy(value: object) -> Policy | None:
    """Return the policy that ``value`` stands for: a policy, a mapping of patterns, or None.

    Raises:
        PolicyError: A bare number (people mean either kind of clipping) or anything else.
    """
    if value is None or isinstance(value, Policy):
        return value
    if isinstance(value, Mapping):
        return Patterns(tuple((_pattern(k), as_policy(v)) for k, v in value.items()))
    if isinstance(value, numbers.Real):
        raise BarePolicyError(
            f"clip={value!r}: a bare number can mean two things; "
            f"use gradwatch.clip.value({value!r}) to limit every element or "
            f"gradwatch.clip.norm({value!r}) to limit the norm."
        )
    raise BarePolicyError(
        f"clip={value!r}: not a policy; {_HOW}, a mapping of name patterns to policies, "
        "or None to measure only."
    )


def walk(policy: Policy | None) -> Iterator[Policy]:
    """Yield a policy and every policy inside it."""
    if policy is None:
        return
    yield policy
    inner: tuple[Policy | None, ...] = ()
    if isinstance(policy, Chain):
        inner = policy.policies
    elif isinstance(policy, Schedule | Patterns):
        inner = tuple(p for _, p in policy.entries)
    elif isinstance(policy, Recommended):
        inner = (policy.base,)
    for one in inner:
        yield from walk(one)


def policy_to_json(policy: Policy | None) -> dict[str, Any] | None:
    """Return the manifest's form of a policy: ``{"kind": "value", "threshold": 1.0}``."""
    rest: dict[str, Any] = {}
    match policy:
        case None:
            return None
        case Value(limit):
            rest = {"threshold": limit}
        case Norm(max_norm, norm_type):
            rest = {"threshold": max_norm, "norm_type": _json_number(norm_type)}
        case PerTensor(max_norm):
            rest = {"threshold": max_norm}
        case Agc(ratio, epsilon):
            rest = {"threshold": ratio, "epsilon": epsilon}
        case ValueRms(factor, decay):
            rest = {"factor": factor, "decay": decay}
        case Recommended(base, minimum, maximum, interval):
            rest = {"base": policy_to_json(base), "minimum": minimum, "maximum": maximum}
            rest["interval"] = interval
        case Schedule(entries):
            rest = {"steps": {str(step): policy_to_json(one) for step, one in entries}}
        case Chain(policies):
            rest = {"policies": [policy_to_json(one) for one in policies]}
        case Patterns(entries):
            rest = {"patterns": {pattern: policy_to_json(one) for pattern, one in entries}}
        case _:
            rest = {field.name: getattr(policy, field.name) for field in fields(policy)}
    return {"kind": policy.kind, **rest}


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"  # JSON has no Infinity


def _pattern(key: object) -> str:
    if not isinstance(key, str):
        raise PolicyError(f"Name pattern {key!r}: give text such as 'encoder.*'.")
    return key


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(policy: Policy, maker: str, field: str, *, infinite: bool = False) -> None:
    """Check one number and store it as a float, so that equal policies are equal and pickle alike."""
    value = getattr(policy, field)
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if isinstance(value, bool) or not (number > 0 and (infinite or math.isfinite(number))):
        raise PolicyError(
            f"{maker}({field}={value!r}): {field} must be a {'' if infinite else 'finite '}number "
            "above 0. To train without clipping, say clip=None."
        )
    object.__setattr__(policy, field, number)
