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

    max_abs: Tensor
    squares: Tensor
    total: Tensor
    finite: Tensor  # how many elements are finite
    nonzero: Tensor  # how many of those are not zero
    numbers: Tensor  # how many elements are neither zero nor NaN
    changed: Tensor  # how many finite ones the limit changed
    squares_after: Tensor
    dot: Tensor


def _measure_(grad: Tensor, limit: Tensor | None, *, zero_nonfinite: bool) -> Tensor:
    """Clip one gradient and return its column, [len(Row)]."""
    scale = scale_after = _scale(grad)
    if limit is not None and grad.dtype == scale.dtype:
        scale_after = torch.where(limit > 0, torch.minimum(scale, limit.to(scale.dtype)), scale)
    scales = (scale, scale_after)
    parts = [torch.stack(_part_(c, scales, limit, zero=zero_nonfinite)) for c in _chunks(grad)]
    if not parts:
        empty = torch.zeros(len(Row), dtype=scale.dtype, device=grad.device)
        empty[Row.COSINE_AFTER :] = 1
        return empty
    table = torch.stack(parts)
    sums = _Part(*table.sum(0))._replace(max_abs=table[:, 0].max())
    nonfinite, infinite = grad.numel() - sums.finite, sums.numbers - sums.nonzero
    norm, after = sums.squares.sqrt(), sums.squares_after.sqrt()
    held = held_squares = torch.zeros_like(norm)
    if limit is not None and not zero_nonfinite:
        # An infinite limit holds nothing, and infinity times 0 is NaN.
        used = torch.where(limit.isfinite(), limit, 0).to(norm.dtype)
        held = infinite * limit.isfinite()
        held_squares = held * used * used
    cosine = torch.where(after > 0, (sums.dot / (norm * after)).clamp(max=1), (norm <= 0).to(norm))
    most = torch.finfo(norm.dtype).max  # where the range ends, not infinity
    return torch.stack(
        [
            held_squares,
            (norm * scale).clamp(max=most),
            sums.max_abs,
            sums.total / grad.numel() * scale,
            nonfinite,
            nonfinite - infinite,
            sums.finite - sums.nonzero,
            sums.changed + held,
            (after * scale_after).clamp(max=most),
            cosine,
            torch.ones_like(norm),
        ]
    )


def _part_(
    grad: Tensor, scales: tuple[Tensor, Tensor], limit: Tensor | None, *, zero: bool
) -> _Part:
    """Clip one chunk.

    Spelled in operations that torch vectorises: those that make or take bools, such as ``isfinite``,
    ``where`` and ``masked_fill``, are ten times slower on a CPU.
    """
    wide = scales[0].dtype
    given = grad if grad.dtype == wide else grad.to(torch.float32)  # 16 bits would round counts
    finite = given.nan_to_num(0.0, 0.0, 0.0)
    magnitudes = finite.abs()
    before = _scaled(finite, scales[0])
    squares = squares_after = dot = (before * before).sum()
    changed = torch.zeros_like(squares)
    # Asked before the gradient changes, which `given` may be: 1 for a number, since inf * 0 is NaN.
    numbers, is_finite = _nonzero(given), (given * 0).add_(1).nan_to_num_(0.0)
    if zero:
        grad.nan_to_num_(0.0, 0.0, 0.0)
    if limit is not None:
        torch.copysign(torch.minimum(grad.abs(), limit), grad, out=grad)
        clipped = torch.copysign(torch.minimum(magnitudes, limit.to(finite.dtype)), finite)
        changed = _nonzero(finite - clipped).to(wide)
        after = _scaled(clipped, scales[1])
        squares_after, dot = (after * after).sum(), (before * after).sum()
    return _Part(
        max_abs=magnitudes.max().to(wide),
        squares=squares,
        total=before.sum(),
        finite=is_finite.sum().to(wide),
        nonzero=_nonzero(finite).to(wide),
        numbers=numbers.to(wide),
        changed=changed,
        squares_after=squares_after,
        dot=dot,
    )


def _scaled(values: Tensor, scale: Tensor) -> Tensor:
    """Return values in the dtype of sums; those that were narrower need no scale, theirs is 1."""
    return values / scale if values.dtype == scale.dtype else values.to(scale.dtype)


def _nonzero(values: Tensor) -> Tensor:
    """Count elements that are not zero and not NaN, infinities included; exact up to a chunk."""
    return values.sign().nan_to_num_(0.0).abs_().sum()


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
    parts = [c.nan_to_num(0.0, 0.0, 0.0).to(scale.dtype) / scale for c in _chunks(grad)]
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
