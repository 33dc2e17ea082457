"""One step: the passes of a policy, carried out by the kernel of each device."""

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from gradwatch.clipping.gradients import Prepared
from gradwatch.clipping.held import Held
from gradwatch.clipping.passes import Pass
from gradwatch.clipping.stages import Situation
from gradwatch.clipping.units import joined_cosine
from gradwatch.kernels import Histogram, Kernel, Row, new_rows

__all__ = ["NONFINITE", "Execution"]

NONFINITE = ("keep", "zero", "skip")


class Execution:
    """Runs kernels over the gradients of one step and keeps their rows on one device.

    Args:
        prepared: The gradients.
        kernel_for: Returns a device's kernel.
        rows: [len(Row), T] zeros, on the first gradient's device; ends as the step's statistics.
        held: Follows infinite elements in the same rows.
    """

    def __init__(
        self,
        prepared: Prepared,
        kernel_for: Callable[[torch.device], Kernel],
        rows: Tensor,
        held: Held,
    ) -> None:
        self._prepared = prepared
        self._rows = rows
        self._held = held
        self._may_hold = False  # whether a limit has run, which may have made infinities finite
        self.groups = [(kernel_for(d), d, grads) for d, grads in prepared.by_device()]
        self.skipped: Tensor | None = None

    def run_(
        self,
        passes: Sequence[Pass],
        now: Situation,
        step: int,
        nonfinite: str,
        histograms: Sequence[Histogram] = (),
    ) -> None:
        """Carry out every pass at this step.

        Afterwards ``now.rows`` is complete, and so are the histograms, one per group, if any.
        """
        count = len(now.grads)
        limits = passes[0].limits(step, count) if passes else None
        zero = nonfinite == "zero"
        self._measure_(limits, self._rows, zero_nonfinite=zero, histograms=histograms)
        self._may_hold = limits is not None and nonfinite == "keep"
        for number, one in enumerate(passes):
            if number and (limits := one.limits(step, count)) is not None:
                self._limit_again_(limits)
                self._may_hold = nonfinite == "keep"
            coefficients = one.coefficients(step, now)
            if coefficients is not None:
                self._scale_(coefficients, now.numel)
            for stage in one.of_kind("unit", step):
                stage.clip_units_(now)
        if nonfinite == "skip":
            self._skip_()

    def _measure_(
        self,
        limits: Tensor | None,
        rows: Tensor,
        *,
        zero_nonfinite: bool = False,
        histograms: Sequence[Histogram] = (),
    ) -> None:
        alone = len(self.groups) == 1
        for (kernel, device, grads), counted in zip_longest(self.groups, histograms):
            part = rows if alone else new_rows(len(grads), device)
            here = limits if limits is None or alone else limits.to(part)
            kernel.measure_(grads, here, part, zero_nonfinite=zero_nonfinite, histogram=counted)
            if not alone:
                rows += part.to(rows)  # every column is zero on all devices but its own
        for index, odd in self._prepared.odd.items():
            stored = self._prepared.gradients.numel[index]
            whole = self._prepared.numel[index]
            column = rows.select(1, index)
            column[Row.HELD] *= odd.repeat
            column[Row.NORM] *= math.sqrt(odd.repeat)
            column[Row.NORM_AFTER] *= math.sqrt(odd.repeat)
            column[Row.NONFINITE : Row.CLIPPED + 1] *= odd.repeat
            column[Row.ZERO] += odd.implicit_zeros
            if whole:
                column[Row.MEAN] *= stored * odd.repeat / whole

    def _limit_again_(self, limits: Tensor) -> None:
        """Limit gradients that an earlier pass has clipped already."""
        rows, fresh = self._rows, torch.zeros_like(self._rows)
        self._measure_(limits, fresh)
        self._held.limited(limits, fresh)
        # The tighter of two limits changes every element that the other one changes.
        rows[Row.CLIPPED] = torch.maximum(rows[Row.CLIPPED], fresh[Row.CLIPPED])
        cosines = rows[Row.COSINE_AFTER], fresh[Row.COSINE_AFTER]
        rows[Row.COSINE_AFTER] = joined_cosine(*cosines)

    def _scale_(self, coefficients: Tensor, numel: Tensor) -> None:
        rows = self._rows
        before = rows[Row.NORM_AFTER].clone()
        for kernel, device, grads in self.groups:
            if len(self.groups) == 1:
                kernel.scale_(grads, coefficients, rows)
                continue
            part = rows.to(device, copy=True)
            kernel.scale_(grads, coefficients.to(part), part)
            here = torch.tensor([g is not None for g in grads.tensors], device=rows.device)
            rows[Row.NORM_AFTER] = torch.where(
                here, part[Row.NORM_AFTER].to(rows), rows[Row.NORM_AFTER]
            )
        scaled = coefficients < 1
        for index, odd in self._prepared.odd.items():
            after = rows[Row.NORM_AFTER, index]
            after.copy_(torch.where(scaled[index], after * math.sqrt(odd.repeat), after))
        if self._may_hold:
            self._held.scaled(coefficients, before)
        rows[Row.CLIPPED] = torch.where(scaled & (rows[Row.PRESENT] > 0), numel, rows[Row.CLIPPED])
        # A tensor that vanished in its dtype has no direction left.
        gone = (rows[Row.NORM_AFTER] <= 0) & (rows[Row.NORM] > 0)
        rows[Row.COSINE_AFTER] = torch.where(gone, 0, rows[Row.COSINE_AFTER])

    def _skip_(self) -> None:
        rows = self._rows
        self.skipped = (rows[Row.NONFINITE].sum() > 0).to(rows)
        for kernel, device, grads in self.groups:
            kernel.zero_(grads, self.skipped.to(device))
        rows[Row.NORM_AFTER] *= 1 - self.skipped
        gone = (rows[Row.NORM] > 0) & (self.skipped > 0)
        rows[Row.COSINE_AFTER] = torch.where(gone, 0, rows[Row.COSINE_AFTER])
