"""The reference kernel where values may be looked at: on a CPU, with no compiled kernel beside it.

What holds a reading of values back is waiting for a device; a CPU has none. So each piece gets a cheap
look first, and the careful one of :mod:`gradwatch.kernels.reference` only if that finds numbers that are
not finite or whose squares leave the dtype's range. Bits and statistics are the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.kernels.pieces import Piece, Scratch
from gradwatch.kernels.reference import Part, Reference, clip_piece_

__all__ = ["Glance"]

# Largest elements of a piece whose squares can be summed without a scale.
_RANGES = {torch.float32: (2.0**-40, 2.0**58), torch.float64: (1e-140, 1e150)}


class Glance(Reference):
    """The reference kernel for CPU gradients, several times faster where they are ordinary."""

    def _look_(self, pieces: Sequence[Piece], limit: Tensor | None, *, zero: bool) -> list[Tensor]:
        scratch = Scratch(pieces)
        largest, smallest, total, nonzero, squares = torch.cat(
            [_glance(piece, scratch) for piece in pieces], 1
        ).to(torch.float64)
        top = torch.maximum(largest, smallest.neg())
        widths = [piece.stop - piece.start for piece in pieces for _ in piece.tensors]
        one, none = torch.ones_like(top), torch.zeros_like(top)
        seen = Part(
            max_abs=top,
            scale=one,
            squares=squares,
            total=total,
            nonzero=nonzero,
            finite=torch.tensor(widths).to(top),
            nan=none,
            clipped=none,
            scale_after=one,
            squares_after=squares,
            dot=squares,
        )
        table = torch.stack(seen)
        low, high = _RANGES[scratch.dtype]
        ordinary = (top == 0) | ((top > low) & (top < high))
        limits = none + torch.inf
        if limit is not None:
            limits = limit.unsqueeze(1).expand(-1, len(top) // len(limit)).reshape(-1).to(top)
            ordinary &= (top <= limits) | (limits > low)
        within = (ordinary & (top <= limits)).tolist()
        if all(within):
            return [table]
        able, parts, first = ordinary.tolist(), [], 0
        for piece in pieces:
            rows = slice(first, first + len(piece.tensors))
            if all(within[rows]):
                parts.append(table[:, rows])
            elif all(able[rows]):
                parts.append(_clip_(piece, scratch, limits[rows], table[:, rows]))
            else:
                parts.append(clip_piece_(piece, scratch, limit, zero=zero).to(top))
            first = rows.stop
        return parts


def _glance(piece: Piece, scratch: Scratch) -> Tensor:
    """Return largest and smallest element, sum, count of those not 0 and sum of squares, [5, rows]."""
    matrix, _ = piece.matrix()
    room, given = scratch.like(matrix)[:2]
    given = matrix if matrix.dtype == given.dtype else given.copy_(matrix)
    nonzero = torch.ne(given, 0, out=room).sum(1)
    # Not `dot`: that adds in a row, and is off by 5e-6 where elements are all alike.
    squares = torch.mul(given, given, out=room).sum(1)
    return torch.stack([given.amax(1), given.amin(1), given.sum(1), nonzero, squares])


def _clip_(piece: Piece, scratch: Scratch, limits: Tensor, seen: Tensor) -> Tensor:
    """Hold a piece of ordinary numbers within the limits of its rows; return what was in it."""
    matrix, shared = piece.matrix()
    room, before, after = scratch.like(matrix)[:3]
    before.copy_(matrix)
    bound = limits.unsqueeze(1).to(matrix.dtype)
    torch.maximum(torch.minimum(matrix, bound, out=matrix), -bound, out=matrix)
    if not shared:
        piece.write_(matrix)
    after = matrix if matrix.dtype == after.dtype else after.copy_(matrix)
    changed = Part(*seen)._replace(
        clipped=torch.ne(before, after, out=room).sum(1).to(seen),
        squares_after=torch.mul(after, after, out=room).sum(1).to(seen),
        dot=torch.mul(before, after, out=room).sum(1).to(seen),
    )
    return torch.stack(changed)
