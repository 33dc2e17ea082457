"""Mixed precision: which scale the gradients carry, and the steps a GradScaler leaves out.

A GradScaler treats two kinds of optimizers differently. Most get their gradients unscaled and are not
stepped at all when a gradient overflowed: no hook runs. Fused ones are always stepped, with *scaled*
gradients and two tensors on the optimizer, ``grad_scale`` and ``found_inf``, for the kernel to use.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType, MethodType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gradwatch.statistics import GradStats
from gradwatch.watching.hooks import unwrap_optimizer

__all__ = ["ScalerHook", "Scaling", "rescale_", "scale_of", "scaler_around", "take_over_unscaling_"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a fused optimizer was handed for this step.

    Attributes:
        inverse: Factor from the gradients to their true values, []; None when they are true already.
        found_inf: Above 0 when the optimizer will leave this step out, []; None without a scaler.
    """

    inverse: Tensor | None = None
    found_inf: Tensor | None = None


def scale_of(optimizer: Optimizer) -> Scaling:
    """Read the scale that GradScaler has left on a fused optimizer for the step under way."""
    scale = getattr(optimizer, "grad_scale", None)
    found = getattr(optimizer, "found_inf", None)
    return Scaling(
        # As GradScaler.unscale_ does: the reciprocal in float64, since float32's is not exact everywhere.
        inverse=scale.double().reciprocal().float() if isinstance(scale, Tensor) else None,
        found_inf=found if isinstance(found, Tensor) else None,
    )


def take_over_unscaling_(optimizer: Optimizer, inverse: Tensor) -> None:
    """Unscale every gradient of a fused optimizer in place, in the optimizer's stead.

    Bit-equal to ``scaler.unscale_(optimizer)`` before the step. GradScaler removes the attribute
    after the step as before.
    """
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if (grad := parameter.grad) is not None:
                by_kind.setdefault((grad.device, grad.dtype), []).append(grad)
    for (device, _), grads in by_kind.items():
        torch._foreach_mul_(grads, inverse.to(device, non_blocking=True))
    optimizer.grad_scale = None  # type: ignore[attr-defined]  # GradScaler's own protocol, see Scaling


def rescale_(stats: GradStats, inverse: Tensor) -> None:
    """Turn statistics of scaled gradients into those of the true ones; the gradients stay scaled.

    Used when nothing is clipped: then training must not differ by a bit, and unscaling in the
    optimizer's kernel need not round like unscaling before it.
    """
    factor = inverse.to(stats.packed)
    for row in ("norm", "max_abs", "mean", "norm_after"):
        stats[row].mul_(factor)
    stats.scalars[:2].mul_(factor)  # global_norm, global_norm_after


def scaler_around() -> GradScaler | None:
    """Return the GradScaler whose ``step`` is running around this call, if one is."""
    code = GradScaler.step.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            found = frame.f_locals.get("self")
            return found if isinstance(found, GradScaler) else None
        frame = frame.f_back
    return None


class Skippable(Protocol):
    """An optimizer under watch, as far as a GradScaler concerns it."""

    optimizer: Optimizer
    hook_calls: int

    def skip_step(self) -> None:
        """Count a step that was left out. Never raises."""


class ScalerHook:
    """Stands in front of ``scaler.step`` and counts the steps that it leaves out.

    Set on the instance; a pickled or copied scaler has its plain method back.

    Args:
        scaler: A GradScaler, or anything with its ``step``.
        watched: The optimizers whose steps are counted.

    Attributes:
        inside: Whether a step of this scaler is running.
    """

    def __init__(self, scaler: Any, watched: Sequence[Skippable]) -> None:
        self._scaler = scaler
        self._watched = watched
        self._step = scaler.step
        self.inside = False
        scaler.step = self

    def __call__(self, optimizer: object, *args: Any, **kwargs: Any) -> Any:
        """Step as before; when no optimizer hook ran in it, the step was left out."""
        inner = unwrap_optimizer(optimizer)
        before = [(each, each.hook_calls) for each in self._watched if each.optimizer is inner]
        self.inside = True
        try:
            returned = self._step(optimizer, *args, **kwargs)
        finally:
            self.inside = False
        for each, calls in before:
            if each.hook_calls == calls:
                each.skip_step()
        return returned

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain_step, (self._scaler,)

    @property
    def is_enabled(self) -> bool:
        """Whether the scaler does anything at all."""
        return bool(getattr(self._scaler, "_enabled", True))

    def scale(self) -> Tensor | None:
        """Return the scale now, on its device; None before the first ``scale()`` or when disabled."""
        scale = getattr(self._scaler, "_scale", None)
        return scale.detach().clone() if isinstance(scale, Tensor) else None

    def remove(self) -> None:
        """Give the scaler its own method back, unless something else stands in front by now."""
        self._watched = ()
        if self._scaler.__dict__.get("step") is self:
            del self._scaler.step


def _plain_step(scaler: Any) -> MethodType:
    """Return the method that a scaler has without a hook."""
    return MethodType(type(scaler).step, scaler)
