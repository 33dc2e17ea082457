"""The kernel that says what is right: plain torch, any device, no branch on a value.

Every other kernel is tested against it. Sums run in float64 (float32 where a device has no more);
gradients that are as wide as the sums are divided by their largest element first, so that a square
never overflows or vanishes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradwatch.kernels import foreach, sampling
from gradwatch.kernels.base import Gradients, Row, accumulator

__all__ = ["Reference", "round_down"]

# Elements looked at together: what fits a CPU's second-level cache as float64, or enough to fill a GPU.
_CPU_CHUNK = 1 << 15
_DEVICE_CHUNK = 1 << 24


class Reference:
    """The kernel in pure torch. See :class:`gradwatch.kernels.base.Kernel` for the contract."""

    name = "reference"

    def measure_(
        self, grads: Gradients, limits: Tensor | None, rows: Tensor, *, zero_nonfinite: bool = False
    ) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        for index, grad in enumerate(grads.tensors):
            if grad is not None:
                limit = None if limits is None else round_down(limits[index], grad.dtype)
                column = _measure_(grad.detach(), limit, zero_nonfinite=zero_nonfinite)
                rows.select(1, index).copy_(column)

    def scale_(self, grads: Gradients, coefficients: Tensor, rows: Tensor) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        wide, coefficients_wide, narrow = [], [], []
        for index, grad in enumerate(grads.tensors):
            if grad is None:
                continue
            single = grad.dtype is not torch.float64
            kind = torch.float32 if single else torch.float64
            coefficient = round_down(coefficients[index], kind)
            if grad.dtype in (torch.float32, torch.float64):
                wide.append(grad.detach())
                coefficients_wide.append(coefficient)
            else:
                narrow.append((grad.detach(), coefficient))
        foreach.mul_(wide, coefficients_wide)
        for grad, coefficient in narrow:
            # A product in 16 bits would round the coefficient to 16 bits first.
            grad.copy_(grad.to(torch.float32).mul_(coefficient))
        for index, grad in enumerate(grads.tensors):
            if grad is not None:
                after, norm = rows[Row.NORM_AFTER, index], _finite_norm(grad.detach())
                after.copy_(torch.where(coefficients[index] < 1, norm, after))

    def zero_(self, grads: Gradients, when: Tensor) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        mask = when != 0
        for grad in grads.tensors:
            if grad is not None:
                grad.detach().masked_fill_(mask, 0)

    def histogram(self, grads: Gradients, every: int, phase: int, counts: Tensor) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        for index, grad in enumerate(grads.tensors):
            if grad is not None and grad.numel():
                counts[index] += sampling.magnitude_bins(grad.detach(), every, phase)

    def sample(self, tensors: Gradients) -> Tensor:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        parts = [sampling.take_sample(t.detach()) for t in tensors.tensors if t is not None]
        return torch.cat(parts) if parts else torch.zeros(0)

    def products(self, a: Tensor, b: Tensor, lengths: Sequence[int]) -> Tensor:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        return sampling.products(a, b, lengths)


def round_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``value`` (above 0) in ``dtype``, rounded toward zero.

    Rounding to nearest, as torch's own clipping does, lets elements exceed the limit for about half
    of all limits.
    """
    nearest = value.to(dtype)
    below = torch.nextafter(nearest, torch.zeros_like(nearest))
    return torch.where(nearest.to(value.dtype) > value, below, nearest)


class _Part(NamedTuple):
    """Sums over one chunk, all []; elements are divided by the tensor's scale, before and after."""

    squares: Tensor
    total: Tensor
    max_abs: Tensor
    nonfinite: Tensor
    nan: Tensor
    zero: Tensor
    clipped: Tensor
    held: Tensor
    squares_after: Tensor
    dot: Tensor


def _measure_(grad: Tensor, limit: Tensor | None, *, zero_nonfinite: bool) -> Tensor:
    """Clip one gradient and return its column, [len(Row)]."""
    scale = scale_after = _scale(grad)
    if limit is not None:
        scale_after = torch.where(limit > 0, torch.minimum(scale, limit.to(scale.dtype)), scale)
    scales = (scale, scale_after)
    parts = [_part_(c, scales, limit, zero_nonfinite=zero_nonfinite) for c in _chunks(grad)]
    if not parts:
        empty = torch.zeros(len(Row), dtype=scale.dtype, device=grad.device)
        empty[Row.COSINE_AFTER :] = 1
        return empty
    sums = torch.stack([torch.stack(part) for part in parts])
    p = _Part(*sums.sum(0))
    norm, after = p.squares.sqrt(), p.squares_after.sqrt()
    limit_used = torch.zeros_like(norm) if limit is None else limit.to(norm.dtype)
    # No element is infinite (0 * inf): the limit may well be.
    held = torch.where(p.held > 0, p.held * limit_used * limit_used, 0)
    one = torch.ones_like(norm)
    most = torch.finfo(
        norm.dtype
    ).max  # a norm beyond the range is reported as its end, not as infinite
    cosine = torch.where(after > 0, (p.dot / (norm * after)).clamp(max=1), (norm <= 0).to(norm))
    return torch.stack(
        [
            held,
            (norm * scale).clamp(max=most),
            sums[:, 2].max() * scale,
            p.total / grad.numel() * scale,
            p.nonfinite,
            p.nan,
            p.zero,
            p.clipped,
            (after * scale_after).clamp(max=most),
            cosine,
            one,
        ]
    )


def _part_(
    grad: Tensor, scales: tuple[Tensor, Tensor], limit: Tensor | None, *, zero_nonfinite: bool
) -> _Part:
    scale, scale_after = scales
    finite = grad.isfinite()
    before = torch.where(finite, grad, 0).to(scale.dtype) / scale
    nonfinite, nan, zero = finite.logical_not(), grad.isnan(), grad == 0
    if zero_nonfinite:
        grad.masked_fill_(nonfinite, 0)
    squares = (before * before).sum()
    count = {"dtype": scale.dtype}
    if limit is None:
        clipped = held = torch.zeros_like(scale)
        squares_after = dot = squares
    else:
        beyond = grad.abs() > limit
        clipped = beyond.sum(**count)
        held = (beyond & nonfinite).sum(**count)
        grad.clamp_(-limit, limit)
        after = torch.where(finite, grad, 0).to(scale.dtype) / scale_after
        squares_after, dot = (after * after).sum(), (before * after).sum()
    return _Part(
        squares=squares,
        total=before.sum(),
        max_abs=before.abs().max(),
        nonfinite=nonfinite.sum(**count),
        nan=nan.sum(**count),
        zero=zero.sum(**count),
        clipped=clipped,
        held=held,
        squares_after=squares_after,
        dot=dot,
    )


def _scale(grad: Tensor) -> Tensor:
    """Return what to divide by before squaring: 1, or the largest element of a wide gradient."""
    wide = accumulator(grad.device)
    one = torch.ones((), dtype=wide, device=grad.device)
    if grad.dtype != wide or grad.numel() == 0:
        return one
    largest = torch.stack(
        [torch.where(c.isfinite(), c, 0).abs().max() for c in _chunks(grad)]
    ).max()
    return torch.where(largest > 0, largest, one)


def _finite_norm(grad: Tensor) -> Tensor:
    scale = _scale(grad)
    parts = [torch.where(c.isfinite(), c, 0).to(scale.dtype) / scale for c in _chunks(grad)]
    squares = [(p * p).sum() for p in parts]
    if not squares:
        return torch.zeros_like(scale)
    norm = torch.stack(squares).sum().sqrt() * scale
    return norm.clamp(max=torch.finfo(norm.dtype).max)


def _chunks(grad: Tensor) -> Iterator[Tensor]:
    """Yield views that cover the gradient once, so that temporaries stay small."""
    if grad.numel() == 0:
        return
    size = _CPU_CHUNK if grad.device.type == "cpu" else _DEVICE_CHUNK
    flat: Sequence[Tensor] = (grad,)
    if grad.is_contiguous():
        flat = torch.split(grad.view(-1), size)
    yield from flat
