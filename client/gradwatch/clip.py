"""Clipping policies, by name: ``gradwatch.clip.value(1.0)``, ``gradwatch.clip.norm(0.5)`` ...

Every function checks its numbers and returns a frozen, picklable policy.
:class:`gradwatch.errors.PolicyError` says what was given and what is allowed.
"""

import numbers
from collections.abc import Mapping

from gradwatch.clipping import published
from gradwatch.clipping.adaptive import Adaptive
from gradwatch.clipping.policies import (
    Agc,
    BarePolicyError,
    Chain,
    Norm,
    PerTensor,
    Policy,
    Recommended,
    Schedule,
    Value,
    ValueRms,
    as_policy,
)
from gradwatch.clipping.spike_skip import SpikeSkip
from gradwatch.errors import PolicyError

__all__ = [
    "adaptive",
    "agc",
    "chain",
    "norm",
    "per_tensor",
    "published",
    "recommended",
    "schedule",
    "spike_skip",
    "value",
    "value_rms",
]


def value(c: float) -> Value:
    """Hold every element in ``[-c, +c]`` (zero-centred clipping). See :class:`.Value`.

    Example:
        >>> import gradwatch
        >>> gradwatch.clip.value(1.0)
        Value(limit=1.0)
    """
    return Value(c)


def norm(max_norm: float, norm_type: float = 2.0) -> Norm:
    """Scale all gradients together so that their norm is at most ``max_norm``. See :class:`.Norm`."""
    return Norm(max_norm, norm_type)


def per_tensor(max_norm: float) -> PerTensor:
    """Scale each gradient tensor so that its own L2 norm is at most ``max_norm``."""
    return PerTensor(max_norm)


def agc(ratio: float = 0.01, *, epsilon: float = 1e-3) -> Agc:
    """Limit each unit's gradient to ``ratio`` times its weights' norm. See :class:`.Agc`."""
    return Agc(ratio, epsilon)


def value_rms(factor: float, *, decay: float = 0.99) -> ValueRms:
    """Hold every element within ``factor`` times its tensor's recent root mean square."""
    return ValueRms(factor, decay)


def adaptive(
    quantile: float | None = None,
    *,
    preference: str = "balanced",
    window: int = 64,
    rise: float | None = None,
    initial: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Adaptive:
    """Limit the joint norm by the service's rule, locally and from the first steps on.

    ``preference`` is ``tight``, ``balanced`` or ``guard``, as in a recommendation. See
    :class:`.Adaptive`.
    """
    return Adaptive(quantile, window, rise, initial, minimum, maximum, preference)


def spike_skip(give_up: int = 5, *, window: int = 64) -> SpikeSkip:
    """Empty the gradients of a step whose joint norm stands out. See :class:`.SpikeSkip`."""
    return SpikeSkip(give_up, window)


def recommended(
    base: Value | Norm | PerTensor | Agc,
    minimum: float | None = None,
    maximum: float | None = None,
    interval: int = 50,
) -> Recommended:
    """Follow the service's recommended threshold; ``base`` until there is one.

    See :class:`.Recommended`.
    """
    return Recommended(base, minimum, maximum, interval)


def schedule(steps: Mapping[int, float | Policy]) -> Schedule:
    """Change the policy at given steps: ``schedule({0: 5.0, 1000: 1.0})``.

    Args:
        steps: First step to the policy from there on. A number means ``value(number)``.
    """
    if not isinstance(steps, Mapping):
        raise PolicyError(
            f"schedule({steps!r}): give a mapping of step to limit, such as {{0: 5.0, 1000: 1.0}}."
        )
    entries = [(step, _entry(step, given)) for step, given in steps.items()]
    return Schedule(tuple(sorted(entries, key=lambda entry: entry[0])))


def chain(*policies: Policy) -> Chain:
    """Apply policies in order: ``chain(value(1.0), norm(5.0))`` holds both limits at once."""
    return Chain(tuple(_link(given) for given in policies))


def _entry(step: object, given: float | Policy) -> Policy:
    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        return Value(float(given))
    policy = as_policy(given)
    if policy is None:
        raise BarePolicyError(f"schedule({{{step!r}: None}}): give a limit or a policy.")
    return policy


def _link(given: object) -> Policy:
    policy = as_policy(given)
    if policy is None:
        raise BarePolicyError("chain(..., None): leave None out; clip=None clips nothing at all.")
    return policy
