"""The newest values of a run: what its gauges show."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["GroupNewest", "Newest", "combine"]


@dataclass(frozen=True, slots=True)
class GroupNewest:
    """One group at the newest step. None: not measured, or the step was not finite.

    Attributes:
        norm: L2 norm before clipping.
        max_abs: Largest magnitude before clipping.
        cosine: Mean of the tensors' cosines to the previous step, weighted by squared norm.
        weight_ratio: Norm of the gradient over the norm of the weights.
    """

    norm: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    weight_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Newest:
    """One source (an optimizer; a rank that holds tensors of its own) at its newest step.

    Attributes:
        attempt: Attempt it belongs to.
        step: The step.
        norm: Global L2 norm before clipping; None when the step was not finite.
        norm_after: The same after clipping.
        max_abs: Largest magnitude before clipping.
        threshold: Threshold in force.
        loss: As logged.
        learning_rate: As sent.
        groups: The groups.
    """

    attempt: int
    step: int
    norm: float | None = None
    norm_after: float | None = None
    max_abs: float | None = None
    threshold: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    groups: Mapping[str, GroupNewest] = field(default_factory=dict)


def combine(sources: Iterable[Newest]) -> Newest | None:
    """All sources as one: norms add in squares, maxima are maxima, scalars are the first source's.

    A run with one optimizer has one source and is returned as it is; None when there is none.
    """
    known = list(sources)
    if len(known) <= 1:
        return known[0] if known else None
    groups: dict[str, list[GroupNewest]] = {}
    for source in known:
        for name, group in source.groups.items():
            groups.setdefault(name, []).append(group)
    return Newest(
        attempt=max(s.attempt for s in known),
        step=max(s.step for s in known),
        norm=_hypot(s.norm for s in known),
        norm_after=_hypot(s.norm_after for s in known),
        max_abs=_largest(s.max_abs for s in known),
        threshold=_first(s.threshold for s in known),
        loss=_first(s.loss for s in known),
        learning_rate=_first(s.learning_rate for s in known),
        groups={name: _join(parts) for name, parts in groups.items()},
    )


def _join(parts: list[GroupNewest]) -> GroupNewest:
    if len(parts) == 1:
        return parts[0]
    return GroupNewest(
        norm=_hypot(p.norm for p in parts),
        max_abs=_largest(p.max_abs for p in parts),
        cosine=_first(p.cosine for p in parts),
        weight_ratio=_first(p.weight_ratio for p in parts),
    )


def _hypot(values: Iterable[float | None]) -> float | None:
    numbers = list(values)
    # One part unknown makes the whole unknown: a norm of some tensors would look like a drop.
    known = [v for v in numbers if v is not None]
    return math.hypot(*known) if known and len(known) == len(numbers) else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)


def _first(values: Iterable[float | None]) -> float | None:
    return next((v for v in values if v is not None), None)
