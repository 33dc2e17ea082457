"""The kernel that says what is right: plain torch, any device, no branch on a value.

Every other kernel is tested against it. It works through matrices of a bounded size, a row per tensor
(see :mod:`gradwatch.kernels.pieces`). Each row is divided by its largest element, so that squares
neither overflow nor vanish, and summed in its own precision by sums that torch arranges as a tree;
rows are joined in float64 (float32 where a device has no more).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradwatch.kernels import sampling
from gradwatch.kernels.base import Gradients, Histogram, Row
from gradwatch.kernels.pieces import Families, Piece, Scratch

__all__ = ["Part", "Reference", "basics", "clip_piece_", "round_down"]


class Part(NamedTuple):
    """What is in each row of a matrix, all [rows]. Sums are of elements divided by a scale."""

    max_abs: Tensor
    scale: Tensor
    squares: Tensor
    total: Tensor
    nonzero: Tensor  # how many elements are finite and not zero
    finite: Tensor  # how many are finite
    nan: Tensor
    clipped: Tensor  # how many finite ones the limit changed
    scale_after: Tensor
    squares_after: Tensor
    dot: Tensor  # divided by both scales


class Basics(NamedTuple):
    """What norm, largest element and mean of the rows of a matrix come from."""

    finite: Tensor  # the matrix with 0 in place of what is not finite
    before: Tensor  # the same divided by the scale
    largest: Tensor
    scale: Tensor
    squares: Tensor
    total: Tensor


class Reference:
    """The kernel in pure torch. See :class:`gradwatch.kernels.base.Kernel` for the contract."""

    name = "reference"

    def __init__(self) -> None:
        self._families = Families()

    def measure_(
        self,
        grads: Gradients,
        limits: Tensor | None,
        rows: Tensor,
        *,
        zero_nonfinite: bool = False,
        histogram: Histogram | None = None,
    ) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        if histogram is not None:
            count_magnitudes(grads, histogram)
        families, empty = self._families.of(grads)
        for family in families:
            limit = None
            if limits is not None:
                dtype = grads.dtypes[family.members[0]] or torch.float32
                limit = round_down(limits.index_select(0, family.order), dtype)
            pieces = family.pieces(grads)
            table = family.join(self._look_(pieces, limit, zero=zero_nonfinite))
            columns = _columns(table.to(rows.dtype), family.numel, limit, zero=zero_nonfinite)
            rows.index_copy_(1, family.order, columns)
        for index in empty:
            rows[Row.COSINE_AFTER :, index] = 1

    def scale_(self, grads: Gradients, coefficients: Tensor, rows: Tensor) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        families, empty = self._families.of(grads)
        for family in families:
            wide = grads.dtypes[family.members[0]] is torch.float64
            factors = coefficients.index_select(0, family.order)
            used = round_down(factors, torch.float64 if wide else torch.float32)
            parts = [_scale_(p, used) for p in family.pieces(grads)]
            scale, squares = family.join(parts).to(rows.dtype)
            norm = _norm(squares, scale)
            kept = rows[Row.NORM_AFTER].index_select(0, family.order)
            after = torch.where(factors < 1, norm, kept)
            rows[Row.NORM_AFTER].index_copy_(0, family.order, after)
        for index in empty:
            rows[Row.NORM_AFTER, index] *= coefficients[index] >= 1

    def zero_(self, grads: Gradients, when: Tensor) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        mask = when != 0
        for grad in grads.tensors:
            if grad is not None:
                grad.detach().masked_fill_(mask, 0)

    def sample(self, tensors: Gradients) -> Tensor:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        parts = [sampling.take_sample(t.detach()) for t in tensors.tensors if t is not None]
        return torch.cat(parts) if parts else torch.zeros(0)

    def products(self, a: Tensor, b: Tensor, lengths: Sequence[int]) -> Tensor:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        return sampling.products(a, b, lengths)

    def _look_(self, pieces: Sequence[Piece], limit: Tensor | None, *, zero: bool) -> list[Tensor]:
        """Clip pieces of one family and return what was in each, [len(Part), rows]."""
        scratch = Scratch(pieces)
        return [clip_piece_(piece, scratch, limit, zero=zero) for piece in pieces]


def count_magnitudes(grads: Gradients, histogram: Histogram) -> None:
    """Add what each gradient's elements are like to its row."""
    for index, grad in enumerate(grads.tensors):
        if grad is not None and grad.numel():
            found = sampling.magnitude_bins(grad.detach(), histogram.every, histogram.phase)
            histogram.counts[index] += found


def clip_piece_(piece: Piece, scratch: Scratch, limit: Tensor | None, *, zero: bool) -> Tensor:
    """Hold a piece within the [T] limits of its family; return what was in it, [len(Part), rows]."""
    matrix, shared = piece.matrix()
    if limit is not None:
        limit = limit[piece.index : piece.index + len(matrix)].unsqueeze(1)
    part = _measure_(matrix, scratch, limit, zero=zero)
    if not shared and (zero or limit is not None):
        piece.write_(matrix)
    return torch.stack(part)


def round_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``value`` (above 0) in ``dtype``, rounded toward zero.

    Rounding to nearest, as torch's own clipping does, lets elements exceed the limit for about half
    of all limits.
    """
    nearest = value.to(dtype)
    below = torch.nextafter(nearest, torch.zeros_like(nearest))
    return torch.where(nearest.to(value.dtype) > value, below, nearest)


def basics(given: Tensor, scratch: Sequence[Tensor]) -> Basics:
    """Look at the rows of a float32 or float64 matrix, with three matrices of its shape to work in."""
    finite, before, room = scratch
    torch.nan_to_num(given, 0.0, 0.0, 0.0, out=finite)
    largest = torch.maximum(finite.amax(1), finite.amin(1).neg())
    scale = _positive(largest)
    torch.div(finite, scale.unsqueeze(1), out=before)
    squares = torch.mul(before, before, out=room).sum(1)
    return Basics(finite, before, largest, scale, squares, before.sum(1))


def _measure_(matrix: Tensor, scratch: Scratch, limit: Tensor | None, *, zero: bool) -> Part:
    """Clip the rows of a matrix to limits [rows, 1].

    Spelled in operations that torch vectorises: on a CPU those that make bools are ten times slower,
    while a comparison written into floats, 1 for true, is as fast as a sum.
    """
    *rest, after, room, given = scratch.like(matrix)
    given = matrix if matrix.dtype == given.dtype else given.copy_(matrix)  # 16 bits round counts
    finite, before, largest, scale, squares, total = basics(given, [*rest, room])
    nan = torch.ne(given, given, out=room).sum(1)
    is_finite = torch.eq(given, finite, out=room).sum(1)
    nonzero = torch.ne(finite, 0, out=room).sum(1)
    if zero:
        matrix.nan_to_num_(0.0, 0.0, 0.0)
    if limit is not None:
        _hold_(matrix, limit, finite if zero else given, room)
    scale_after, squares_after, dot = scale, squares, squares
    clipped = torch.zeros_like(squares)
    if limit is not None:
        bound = limit.to(given.dtype)
        torch.maximum(torch.minimum(finite, bound, out=after), -bound, out=after)
        clipped = torch.ne(finite, after, out=room).sum(1)
        scale_after = _positive(torch.minimum(scale, bound.squeeze(1)))
        after /= scale_after.unsqueeze(1)
        squares_after = torch.mul(after, after, out=room).sum(1)
        dot = torch.mul(before, after, out=room).sum(1)
    return Part(
        max_abs=largest,
        scale=scale,
        squares=squares,
        total=total,
        nonzero=nonzero,
        finite=is_finite,
        nan=nan,
        clipped=clipped,
        scale_after=scale_after,
        squares_after=squares_after,
        dot=dot,
    )


def _hold_(matrix: Tensor, limit: Tensor, given: Tensor, room: Tensor) -> None:
    """Hold every element within its row's limit, with the sign that it had.

    The sign needs saying where a limit is so small that it becomes 0 in a dtype of 16 bits: whether the
    larger of 0 and -0 is the one or the other is up to the machine.
    """
    between = room if room.dtype == matrix.dtype else matrix
    torch.maximum(torch.minimum(matrix, limit, out=between), -limit, out=between)
    torch.copysign(between, given, out=matrix)


def _columns(table: Tensor, numel: int, limit: Tensor | None, *, zero: bool) -> Tensor:
    """Join the parts of tensors, [len(Part), T, parts], to rows, [len(Row), T]."""
    part = Part(*table)
    largest, share = _shares(part.squares, part.scale)
    largest_after, share_after = _shares(part.squares_after, part.scale_after)
    norm = _norm(part.squares, part.scale)
    after = _norm(part.squares_after, part.scale_after)
    total, dot = (part.total * share).sum(1), (part.dot * share * share_after).sum(1)
    finite, nan, clipped = part.finite.sum(1), part.nan.sum(1), part.clipped.sum(1)
    held = held_squares = torch.zeros_like(norm)
    if limit is not None and not zero:
        # An infinite limit holds nothing, and infinity times 0 is NaN.
        used = torch.where(limit.isfinite(), limit, 0).to(norm.dtype)
        held = (numel - finite - nan) * limit.isfinite()
        held_squares = held * used * used
    alike = dot / ((norm / largest) * (after / largest_after))
    cosine = torch.where(after > 0, alike.clamp(max=1), (norm <= 0).to(norm))
    return torch.stack(
        [
            held_squares,
            norm,
            part.max_abs.amax(1),
            total / numel * largest,
            numel - finite,
            nan,
            finite - part.nonzero.sum(1),
            clipped + held,
            after,
            cosine,
            torch.ones_like(norm),
        ]
    )


def _norm(squares: Tensor, scale: Tensor) -> Tensor:
    """Return the [T] norms of tensors whose parts, [T, parts], were divided by these scales."""
    most = torch.finfo(squares.dtype).max  # where the range ends, not infinity
    largest, share = _shares(squares, scale)
    return ((squares * share**2).sum(1).sqrt() * largest).clamp(max=most)


def _shares(squares: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest scale of each tensor's parts that are not all zero, and each one's share of it."""
    used = torch.where(squares > 0, scale, 0)
    largest = _positive(used.amax(1))
    return largest, used / largest.unsqueeze(1)


def _scale_(piece: Piece, coefficients: Tensor) -> Tensor:
    """Multiply a piece and return scale and squares of the finite products, [2, rows]."""
    matrix, shared = piece.matrix()
    factor = coefficients[piece.index : piece.index + len(matrix)].unsqueeze(1)
    # A product in 16 bits would round the coefficient to 16 bits first.
    matrix.copy_(_at_least_single(matrix) * factor)
    if not shared:
        piece.write_(matrix)
    finite = _at_least_single(matrix).nan_to_num(0.0, 0.0, 0.0)
    scale = _positive(torch.maximum(finite.amax(1), finite.amin(1).neg()))
    finite /= scale.unsqueeze(1)
    return torch.stack([scale, finite.mul_(finite).sum(1)])


def _positive(values: Tensor) -> Tensor:
    """Return values to divide by: 1 in place of 0."""
    return torch.where(values > 0, values, 1)


def _at_least_single(matrix: Tensor) -> Tensor:
    """Return a matrix in which counts of elements are exact: 16 bits would round them."""
    return matrix if matrix.dtype == torch.float64 else matrix.to(torch.float32)
