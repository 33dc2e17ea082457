"""What is done to the gradients of a step: gradwatch's policies, and what others do instead."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import gradwatch

__all__ = ["ARMS", "CLIPPED", "Arm", "Clip", "Limit"]

Limit = tuple[float, ...]
Clip = Callable[[list[nn.Parameter]], None]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of clipping.

    Attributes:
        name: As it stands in tables.
        limits: Which grids of a job its limit is taken from: ``values``, ``norms``, both or none.
        make: Limits to a function that clips the gradients of parameters in place.
    """

    name: str
    limits: tuple[str, ...]
    make: Callable[[Limit], Clip]


def _unclipped(limit: Limit) -> Clip:
    del limit
    return lambda _: None


def _value(limit: Limit) -> Clip:
    policy = gradwatch.clip.value(limit[0])
    return lambda parameters: _apply(parameters, policy)


def _norm(limit: Limit) -> Clip:
    policy = gradwatch.clip.norm(limit[0])
    return lambda parameters: _apply(parameters, policy)


def _chain(limit: Limit) -> Clip:
    policy = gradwatch.clip.chain(gradwatch.clip.value(limit[0]), gradwatch.clip.norm(limit[1]))
    return lambda parameters: _apply(parameters, policy)


def _max_only(limit: Limit) -> Clip:
    """Only an upper limit, as in ``g.clamp_(max=c)``: what symmetric limits are compared with."""

    def clip(parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.clamp_(max=limit[0])

    return clip


def _apply(parameters: list[nn.Parameter], policy: gradwatch.clip.Policy) -> None:
    gradwatch.clip_grad_(parameters, policy)


ARMS = {
    arm.name: arm
    for arm in (
        Arm("none", (), _unclipped),
        Arm("value", ("values",), _value),
        Arm("norm", ("norms",), _norm),
        Arm("value + norm", ("values", "norms"), _chain),
        Arm("max-only", ("values",), _max_only),
    )
}
CLIPPED = ("value", "norm", "value + norm")
