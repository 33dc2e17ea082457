"""The one buffer that a step's statistics are written into, so that one copy moves them all."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.clipping.extras import Measured
from gradwatch.clipping.norms import joint_norm
from gradwatch.clipping.passes import Pass
from gradwatch.kernels import Row, accumulator
from gradwatch.statistics import STATISTICS, GradStats

__all__ = ["Buffer"]


class Buffer:
    """Memory for one step, fresh each time: the caller may keep what :meth:`finish` returns.

    Args:
        passes: What is clipped; decides which thresholds are columns and which are scalars.
        count: Number of tensors, T.
        device: Where the gradients are.
        optional: Further columns, NaN where they are not measured.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        count: int,
        device: torch.device,
        optional: Sequence[str] = (),
    ) -> None:
        names = ["threshold", *(f"threshold_{n}" for n in range(2, len(passes) + 1))]
        named = list(zip(names, passes, strict=False))
        self._columns = (*STATISTICS, *optional, *(name for name, one in named if one.differs))
        self._scalar_names = (
            *("global_norm", "global_norm_after", "skipped"),
            *(name for name in optional if name == "cosine_previous"),
            *(name for name, one in named if not one.differs),
        )
        self._named = named
        self._optional = optional
        height = 1 + len(self._columns)
        size = height * count + len(self._scalar_names)
        # First the internal row, then everything that the user sees, without a gap.
        flat = torch.zeros(size, dtype=accumulator(device), device=device)
        self._all = flat[: height * count].view(height, count)
        self._scalars = flat[height * count :]
        self._buffer = flat[count:]
        self.rows = self._all[: len(Row)]  # [len(Row), T], what kernels write

    def finish(
        self, step: int, skipped: Tensor | None, names: Sequence[str] | None, extra: Measured
    ) -> GradStats:
        """Fill in what concerns all tensors and what was measured beside, and return everything."""
        packed = self._all[1:]
        for name in self._optional:
            _put(packed[self._columns.index(name)], extra.rows.get(name))
        if "cosine_previous" in self._optional:
            place = self._scalars[self._scalar_names.index("cosine_previous")]
            _put(place, extra.cosine_previous)
        thresholds = []
        for name, one in self._named:
            limit = one.threshold(step)
            if one.differs:
                place = packed[self._columns.index(name)]
            else:
                place = self._scalars[self._scalar_names.index(name)]
            _put(place, limit)
            thresholds.append(place)
        self._scalars[0] = joint_norm(self.rows[Row.NORM])
        self._scalars[1] = joint_norm(self.rows[Row.NORM_AFTER])
        if skipped is not None:
            self._scalars[2] = skipped
        return GradStats(
            packed=packed,
            scalars=self._scalars,
            buffer=self._buffer,
            columns=self._columns,
            scalar_names=self._scalar_names,
            thresholds=tuple(thresholds),
            names=names,
            histogram=extra.histogram,
            histogram_sampled=extra.histogram_sampled,
        )


def _put(place: Tensor, value: Tensor | None) -> None:
    """Write a value, or NaN for one that was not measured."""
    if value is None:
        place.fill_(torch.nan)
    else:
        place.copy_(value)
