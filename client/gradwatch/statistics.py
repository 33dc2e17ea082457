"""What one step's gradients looked like: tensors on the gradients' device, read when you ask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["STATISTICS", "GradStats"]

# One row per statistic, in the order of the packed tensor. Meanings: class GradStats.
STATISTICS = (
    "norm",
    "max_abs",
    "mean",
    "nonfinite_count",
    "nan_count",
    "zero_count",
    "clipped_count",
    "norm_after",
    "cosine_after",
    "present",
)


@dataclass(frozen=True, eq=False, slots=True)
class GradStats:
    """Statistics of one step, one number per tensor, still on the device.

    Nothing here has been read back: :meth:`to_dict` is the one explicit read. All tensors are views
    of ``buffer``, so one copy moves everything; it belongs to this step alone.

    Before clipping, over the finite elements: ``norm`` (L2), ``max_abs``, ``mean`` (finite sum per
    element). Counts of elements: ``nonfinite_count``, of which ``nan_count``; ``zero_count``;
    ``clipped_count``, those the policy changed. After clipping, over the elements that were finite
    before: ``norm_after``, and ``cosine_after`` between the gradient before and after. ``present``
    is 0 where there was no gradient; the tensor's other columns are then 0.

    Attributes:
        packed: [len(columns), T] the rows named by ``columns``.
        scalars: [len(scalar_names)] whole-step numbers, see ``scalar_names``.
        buffer: [len(columns) * T + len(scalar_names)] both of them, flat.
        columns: Names of the rows: :data:`STATISTICS`, then what was asked for in addition. A row
            of NaN was not measured at this step.
        scalar_names: ``global_norm``, ``global_norm_after``, ``skipped``, ``threshold`` ...
        thresholds: Limit in force per pass of the policy, [] or [T].
        names: Tensor names, where they are known.
        histogram: [T, 256] counts of elements per magnitude, or None when not taken.
        histogram_sampled: Share of the elements that the histogram looked at, 0 to 1.
    """

    packed: Tensor
    scalars: Tensor
    buffer: Tensor
    columns: tuple[str, ...] = STATISTICS
    scalar_names: tuple[str, ...] = ("global_norm", "global_norm_after", "skipped")
    thresholds: tuple[Tensor, ...] = ()
    names: Sequence[str] | None = None
    histogram: Tensor | None = None
    histogram_sampled: float = 1.0

    def __getitem__(self, column: str) -> Tensor:
        """Return the [T] row of one statistic."""
        return self.packed[self.columns.index(column)]

    @property
    def norm(self) -> Tensor:
        """[T] L2 norm of the finite elements before clipping, gradient units."""
        return self["norm"]

    @property
    def max_abs(self) -> Tensor:
        """[T] largest absolute finite element before clipping, gradient units."""
        return self["max_abs"]

    @property
    def mean(self) -> Tensor:
        """[T] sum of the finite elements divided by the number of elements, gradient units."""
        return self["mean"]

    @property
    def nonfinite_count(self) -> Tensor:
        """[T] elements that were NaN or infinite."""
        return self["nonfinite_count"]

    @property
    def nan_count(self) -> Tensor:
        """[T] elements that were NaN."""
        return self["nan_count"]

    @property
    def zero_count(self) -> Tensor:
        """[T] elements that were exactly zero."""
        return self["zero_count"]

    @property
    def clipped_count(self) -> Tensor:
        """[T] elements that the policy changed; all of them where a norm was scaled."""
        return self["clipped_count"]

    @property
    def norm_after(self) -> Tensor:
        """[T] L2 norm after clipping of the elements that were finite before, gradient units."""
        return self["norm_after"]

    @property
    def cosine_after(self) -> Tensor:
        """[T] cosine between the gradient before and after clipping, -1 to 1; 1 is untouched.

        Where two passes of a chain both turn the direction it is a lower bound.
        """
        return self["cosine_after"]

    @property
    def present(self) -> Tensor:
        """[T] 1 where there was a gradient, else 0."""
        return self["present"]

    @property
    def global_norm(self) -> Tensor:
        """[] square root of the sum of ``norm`` squared, always finite."""
        return self.scalars[0]

    @property
    def global_norm_after(self) -> Tensor:
        """[] the same of ``norm_after``."""
        return self.scalars[1]

    @property
    def skipped(self) -> Tensor:
        """[] 1 when ``nonfinite="skip"`` emptied the gradients of this step, else 0."""
        return self.scalars[2]

    @property
    def threshold(self) -> Tensor | None:
        """[] or [T] limit in force, of the first policy in a chain; None when nothing is clipped."""
        return self.thresholds[0] if self.thresholds else None

    @torch.no_grad()
    def to_dict(self) -> dict[str, Any]:
        """Read everything back and return plain numbers. Waits for the device, on purpose."""
        flat = self.buffer.detach().cpu().to(torch.float64)  # not every device has float64
        count = self.packed.shape[1]
        result: dict[str, Any] = {}
        for row, column in enumerate(self.columns):
            values = flat[row * count : (row + 1) * count].tolist()
            whole = column.endswith("_count") or column == "present"
            result[column] = [int(v) for v in values] if whole else values
        scalars = flat[len(self.columns) * count :].tolist()
        result |= dict(zip(self.scalar_names, scalars, strict=True))
        result.setdefault("threshold", None)
        result["skipped"] = bool(result["skipped"])
        if self.names is not None:
            result["names"] = list(self.names)
        return result
