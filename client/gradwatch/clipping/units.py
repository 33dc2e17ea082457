"""Unit-wise clipping: each row of a matrix, each filter of a convolution, by its own weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.errors import PolicyError
from gradwatch.kernels import Gradients, Row, round_down

__all__ = ["clip_units_"]

_SMALLEST_NORM = 1e-30  # keeps 0 / 0 out; far below any gradient that is ever clipped


def clip_units_(
    grads: Gradients,
    parameters: Sequence[Tensor | None] | None,
    rows: Tensor,
    *,
    ratio: Tensor,
    epsilon: float,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scale every unit whose gradient exceeds ``ratio`` times its weights; update ``rows``.

    Returns the [T] largest gradient norm per weight norm over each tensor's units, before clipping,
    and the [T] norms of the weights; NaN for tensors that are not clipped here.

    Args:
        grads: T gradients, changed in place.
        parameters: Their T parameters.
        rows: [len(Row), T] as a kernel writes them; what is after clipping is brought up to date.
        ratio: [] or [T] largest gradient norm per weight norm.
        epsilon: Weight norms below this count as this.
        mask: [T] flags of the tensors to clip; None is all.
    """
    if parameters is None:
        raise PolicyError("agc compares gradients with weights: pass the parameters too.")
    largest = torch.full_like(rows[0], torch.nan)
    weight_norms = torch.full_like(rows[0], torch.nan)
    ratios = ratio.expand(rows.shape[1])
    if mask is not None:
        ratios = torch.where(mask, ratios, torch.inf)
    for index, (grad, weight) in enumerate(zip(grads.tensors, parameters, strict=True)):
        if grad is None or weight is None or grad.numel() == 0:
            continue
        column = rows.select(1, index)
        here = column.to(grad.device)
        beside = _unit_norms(_real(weight.detach()), here.dtype)
        norms = _unit_norms(grad.detach(), here.dtype)
        floor = beside.clamp(min=epsilon)
        _clip_(grad.detach(), norms, floor * ratios[index].to(grad.device), here)
        column.copy_(here)
        largest[index] = (norms / floor).amax()
        weight_norms[index] = beside.square().sum().sqrt()
    if mask is not None:
        largest = torch.where(mask, largest, torch.nan)
        weight_norms = torch.where(mask, weight_norms, torch.nan)
    return largest, weight_norms


def _real(weight: Tensor) -> Tensor:
    return torch.view_as_real(weight) if weight.is_complex() else weight


def _clip_(grad: Tensor, norms: Tensor, limits: Tensor, column: Tensor) -> None:
    coefficients = torch.where(norms > limits, limits / norms.clamp(min=_SMALLEST_NORM), 1)
    kind = torch.float64 if grad.dtype is torch.float64 else torch.float32
    used = round_down(coefficients, kind)
    grad.copy_(grad.to(kind) * used)
    used = used.to(column.dtype)
    before = norms.square().sum().sqrt()
    after = (norms * used).square().sum().sqrt()
    shrunk = torch.where(before > 0, after / before, 1)
    dot = (norms.square() * used).sum()
    cosine = torch.where(after > 0, (dot / (before * after)).clamp(max=1), (before <= 0).to(after))
    clipped = (used < 1).sum() * (grad.numel() / used.numel())
    column[Row.CLIPPED] = torch.maximum(column[Row.CLIPPED], clipped)
    column[Row.NORM_AFTER] *= shrunk
    column[Row.HELD] *= shrunk.square()
    column[Row.COSINE_AFTER] = joined_cosine(column[Row.COSINE_AFTER], cosine)


def joined_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the least cosine that two turns by these cosines can leave, not below 0.

    Exact when one of them is 1. No clipping turns an element around, hence not below 0.
    """
    sines = ((1 - first.square()).clamp(min=0) * (1 - second.square()).clamp(min=0)).sqrt()
    return (first * second - sines).clamp(min=0)


def _unit_norms(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the norm of every unit over its finite elements, shaped to multiply the tensor."""
    wide = torch.where(tensor.isfinite(), tensor, 0).to(dtype)
    dims = tuple(range(1, tensor.dim())) if tensor.dim() > 1 else None
    norms: Tensor = torch.linalg.vector_norm(wide, dim=dims, keepdim=True)
    return norms
