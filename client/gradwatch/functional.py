"""Clipping without watching: one call, in place, no service."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gradwatch.clipping.clipper import Clipper
from gradwatch.clipping.gradients import prepare
from gradwatch.clipping.learned import LearnedPolicy
from gradwatch.clipping.norms import joint_norm, norms_of_order
from gradwatch.clipping.policies import Norm, Policy, Recommended, Value, ValueRms, as_policy, walk
from gradwatch.errors import PolicyError
from gradwatch.statistics import GradStats

__all__ = ["clip_grad_", "clip_grad_norm_", "clip_grad_value_"]

Parameters = Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]]


def clip_grad_(
    parameters: Parameters,
    policy: Policy | Mapping[str, Policy | None] | None,
    *,
    nonfinite: str = "keep",
    kernel: str = "auto",
    step: int = 0,
) -> GradStats:
    """Clip the gradients of ``parameters`` in place and return what they were like.

    Nothing is read back to the host: :meth:`.GradStats.to_dict` does that when you ask.

    Args:
        parameters: A tensor, several, or ``model.named_parameters()``; a parameter that comes twice
            counts once, one without a gradient has ``present`` 0.
        policy: Made by ``gradwatch.clip.*``; a mapping of name patterns to policies needs named
            parameters; None measures only.
        nonfinite: ``keep``, ``zero`` or ``skip``, see :class:`.Clipper`.
        kernel: ``auto``, ``reference``, ``cpu`` or ``cuda``.
        step: What a ``schedule`` goes by.

    Raises:
        PolicyError: Not a policy, or one that learns from step to step (use :class:`.Clipper`).
        GradientError: A gradient that cannot be clipped in place; nothing was changed.

    Example:
        >>> import torch, gradwatch
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> weight.grad = torch.tensor([-3.0, 0.5, 2.0])
        >>> stats = gradwatch.clip_grad_(weight, gradwatch.clip.value(1.0))
        >>> weight.grad
        tensor([-1.0000,  0.5000,  1.0000])
        >>> stats.to_dict()["clipped_count"]
        [2]
    """
    checked = as_policy(policy)
    for part in walk(checked):
        if isinstance(part, ValueRms | Recommended | LearnedPolicy):
            raise PolicyError(
                f"clip_grad_: {part.kind} learns from step to step and this call forgets; "
                "keep a gradwatch.Clipper, or use gradwatch.watch(model, optimizer)."
            )
    names, tensors = _listed(parameters)
    clipper = Clipper(checked, names, nonfinite=nonfinite, kernel=kernel)
    return clipper.clip_([p.grad for p in tensors], tensors, step)


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor],
    clip_value: float,
    foreach: bool | None = None,  # noqa: FBT001 -- torch's signature
    *,
    exact_torch: bool = False,
) -> None:
    """Hold every gradient element in ``[-clip_value, +clip_value]``, in the gradient's own dtype.

    As :func:`torch.nn.utils.clip_grad_value_`, whose limit is rounded to nearest and so exceeded
    for about half of all values.

    Args:
        parameters: A tensor or several.
        clip_value: Limit, finite and above 0.
        foreach: Taken for torch's sake; only ``exact_torch`` uses it.
        exact_torch: Call torch's function, bit for bit.

    Raises:
        PolicyError: A limit that is not a finite number above 0.
    """
    limit = Value(float(clip_value))
    if exact_torch:
        torch.nn.utils.clip_grad_value_(parameters, limit.limit, foreach)
    else:
        clip_grad_(parameters, limit)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,  # noqa: FBT001, FBT002 -- torch's signature
    foreach: bool | None = None,  # noqa: FBT001 -- torch's signature
    *,
    exact_torch: bool = False,
) -> Tensor:
    """Scale all gradients so that their joint norm is at most ``max_norm``; return the norm before.

    As :func:`torch.nn.utils.clip_grad_norm_`, with the norm summed in float64, and without its harm
    when an element is not finite: the finite ones are scaled by their own norm. The returned norm
    is then NaN or infinite, as torch's is.

    Args:
        parameters: A tensor or several.
        max_norm: Limit above 0; ``inf`` only measures.
        norm_type: Order of the norm; ``inf`` is the largest element.
        error_if_nonfinite: Raise RuntimeError before anything is changed. Waits for the device.
        foreach: Taken for torch's sake; only ``exact_torch`` uses it.
        exact_torch: Call torch's function, bit for bit.

    Returns:
        [] norm before clipping, float32 or wider, on the first gradient's device.

    Raises:
        PolicyError: A limit that is not above 0.
    """
    if exact_torch:
        return torch.nn.utils.clip_grad_norm_(
            parameters, max_norm, norm_type, error_if_nonfinite, foreach
        )
    names, tensors = _listed(parameters)
    grads = [p.grad for p in tensors]
    if not any(g is not None for g in grads):
        return torch.tensor(0.0)
    measure_only = float(max_norm) == math.inf
    policy = Norm(1.0 if measure_only else float(max_norm), float(norm_type), 1e-6)
    total = None
    if measure_only or error_if_nonfinite or policy.norm_type != 2:
        total = _total_norm(Clipper(None, names).clip_(grads), grads, policy.norm_type)
        if error_if_nonfinite and not math.isfinite(total.item()):
            raise RuntimeError(
                f"The total norm of order {policy.norm_type} is {total.item()}: a gradient has an "
                "element that is not finite. Nothing was clipped; to clip the finite elements, "
                "set error_if_nonfinite=False."
            )
        if measure_only:
            return total
    stats = Clipper(policy, names).clip_(grads)
    return _total_norm(stats, grads, 2.0) if total is None else total


@torch.no_grad()
def _total_norm(stats: GradStats, grads: list[Tensor | None], order: float) -> Tensor:
    """Return the norm as torch would: NaN or infinite where an element is."""
    norm = stats.global_norm
    if order != 2:
        norm = joint_norm(norms_of_order(prepare(grads).gradients, order, stats.norm), order)
    norm = torch.where(stats.nonfinite_count.sum() > 0, torch.inf, norm)
    norm = torch.where(stats.nan_count.sum() > 0, torch.nan, norm)
    double = any(g is not None and g.dtype in (torch.float64, torch.complex128) for g in grads)
    return norm.to(torch.float64 if double else torch.float32)


def _listed(parameters: Parameters) -> tuple[list[str] | None, list[Tensor]]:
    """Return names, if there are any, and every parameter once."""
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not given:
        return None, []
    if all(isinstance(one, tuple) for one in given):
        by_id = {id(p): (name, p) for name, p in reversed(given)}
        named = [by_id[key] for key in dict.fromkeys(id(p) for _, p in given)]
        return [name for name, _ in named], [p for _, p in named]
    if not all(isinstance(one, Tensor) for one in given):
        raise PolicyError("parameters: give tensors, or (name, tensor) pairs.")
    return None, list({id(p): p for p in given}.values())
