"""Infinite elements that a limit made finite: in the gradient, yet not in its statistics.

``norm_after`` covers the elements that were finite before clipping. After an infinity was held at
the limit, a later pass can no longer tell it from the others, so its share is taken out by
arithmetic, from the very number it became.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradwatch.kernels import Row, round_down

__all__ = ["Held"]

Groups = Sequence[tuple[torch.dtype, Tensor | None]]


class Held:
    """Follows what each tensor's held infinities have become.

    Args:
        rows: [len(Row), T]; ``HELD`` and ``NORM_AFTER`` are brought up to date.
        dtypes: Every dtype among the gradients, with the [T] mask of its tensors; None is all.
    """

    def __init__(self, rows: Tensor, dtypes: Groups) -> None:
        self._rows = rows
        self._dtypes = dtypes

    def limited(self, limits: Tensor, fresh: Tensor) -> None:
        """Take over ``fresh`` rows of a second limit, without what was held before it.

        Leaves in ``fresh`` the cosine that the second limit has for the elements that count.
        """
        rows, value = self._rows, self._value()
        new = torch.minimum(value, self._by_dtype(lambda dtype: round_down(limits, dtype)))
        before, after_all = rows[Row.NORM_AFTER], fresh[Row.NORM_AFTER]
        # Where only held elements changed, the others have their old norm to the last digit.
        others_changed = fresh[Row.CLIPPED] > self._number() * (new < value)
        after = torch.where(others_changed, self._without(after_all, new), before)
        dot = fresh[Row.COSINE_AFTER] * torch.hypot(before, rows[Row.HELD].sqrt()) * after_all
        cosine = (dot - self._number() * value * new) / (before * after)
        cosine = torch.where(others_changed, cosine, 1)
        held = rows[Row.HELD] > 0
        fresh[Row.COSINE_AFTER] = torch.where(
            held & (after > 0), cosine.clamp(0, 1), fresh[Row.COSINE_AFTER]
        )
        rows[Row.HELD] = torch.where(held, self._squares(new), fresh[Row.HELD])
        rows[Row.NORM_AFTER] = torch.where(held, after, after_all)

    def scaled(self, coefficients: Tensor, before: Tensor) -> None:
        """Take the held elements out of norms that were measured after scaling.

        Args:
            coefficients: [T] what was multiplied by.
            before: [T] ``NORM_AFTER`` as it was before.
        """
        rows, value = self._rows, self._value()

        def product(dtype: torch.dtype) -> Tensor:
            kind = torch.float64 if dtype is torch.float64 else torch.float32
            return (value.to(kind) * round_down(coefficients, kind)).to(dtype)

        scaled = (coefficients < 1) & (rows[Row.HELD] > 0)
        new = self._by_dtype(product)
        # Taking most of a sum away leaves few digits. The product of the others' norm has them all in
        # the wide dtypes; in 16 bits elements were rounded, so there it must be nearly all of the sum.
        most = self._by_dtype(
            lambda dtype: torch.full_like(value, 0.5 if _is_wide(dtype) else 0.9999)
        )
        mostly = self._squares(new) > rows[Row.NORM_AFTER].square() * most
        after = torch.where(mostly, before * coefficients, self._without(rows[Row.NORM_AFTER], new))
        rows[Row.HELD] = torch.where(scaled, self._squares(new), rows[Row.HELD])
        rows[Row.NORM_AFTER] = torch.where(scaled, after, rows[Row.NORM_AFTER])

    def _number(self) -> Tensor:
        return self._rows[Row.NONFINITE] - self._rows[Row.NAN]

    def _value(self) -> Tensor:
        return (self._rows[Row.HELD] / self._number().clamp(min=1)).sqrt()

    def _squares(self, value: Tensor) -> Tensor:
        return value.square() * self._number()

    def _without(self, norms: Tensor, value: Tensor) -> Tensor:
        return (norms.square() - self._squares(value)).clamp(min=0).sqrt()

    def _by_dtype(self, compute: Callable[[torch.dtype], Tensor]) -> Tensor:
        result = torch.zeros_like(self._rows[Row.HELD])
        for dtype, mask in self._dtypes:
            part = compute(dtype).to(result)
            result = part if mask is None else torch.where(mask, part, result)
        return result


def _is_wide(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.float64)
