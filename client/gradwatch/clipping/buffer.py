"""The one buffer that a step's statistics are written into, so that one copy moves them all."""

from collections.abc import Sequence

import torch
from torch import Tensor

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
    """

    def __init__(self, passes: Sequence[Pass], count: int, device: torch.device) -> None:
        names = ["threshold", *(f"threshold_{n}" for n in range(2, len(passes) + 1))]
        named = list(zip(names, passes, strict=False))
        self._columns = (*STATISTICS, *(name for name, one in named if one.differs))
        self._scalar_names = (
            *("global_norm", "global_norm_after", "skipped"),
            *(name for name, one in named if not one.differs),
        )
        self._named = named
        height = 1 + len(self._columns)
        size = height * count + len(self._scalar_names)
        # First the internal row, then everything that the user sees, without a gap.
        flat = torch.zeros(size, dtype=accumulator(device), device=device)
        self._all = flat[: height * count].view(height, count)
        self._scalars = flat[height * count :]
        self._buffer = flat[count:]
        self.rows = self._all[: len(Row)]  # [len(Row), T], what kernels write

    def finish(self, step: int, skipped: Tensor | None, names: Sequence[str] | None) -> GradStats:
        """Fill in what concerns all tensors and return the statistics."""
        packed = self._all[1:]
        thresholds = []
        for name, one in self._named:
            limit = one.threshold(step)
            if one.differs:
                place = packed[self._columns.index(name)]
            else:
                place = self._scalars[self._scalar_names.index(name)]
            place.copy_(limit) if limit is not None else place.fill_(torch.nan)
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
        )
