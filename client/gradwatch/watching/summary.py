"""What has been seen so far, kept on the host by the background thread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradwatch_wire import TensorInfo

__all__ = ["Latest", "Summary"]


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest statistics that have reached the host.

    Attributes:
        step: The step they belong to.
        optimizer: Name of its optimizer.
        names: Tensor names, in order.
        columns: Statistic to one number per tensor.
        global_norm: L2 norm over all tensors, finite elements only.
    """

    step: int
    optimizer: str
    names: tuple[str, ...]
    columns: dict[str, list[float]]
    global_norm: float

    @property
    def first_nonfinite(self) -> str | None:
        """The tensor where NaN or infinity came in, or None.

        Names stand in the model's order, backward passes run against it: of the tensors with
        non-finite gradients the last is the first that the backward pass reached.
        """
        counts = self.columns["nonfinite_count"]
        found = [name for name, count in zip(self.names, counts, strict=True) if count > 0]
        return found[-1] if found else None

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return tensor name to its statistics."""
        return {
            name: {column: values[row] for column, values in self.columns.items()}
            for row, name in enumerate(self.names)
        }


@dataclass(slots=True)
class Summary:
    """Running figures of one optimizer for the closing lines, ``last()`` and ``stop_on``.

    Written by the background thread only; readers on other threads see whole values.

    Args:
        optimizer: Name of the optimizer.
    """

    optimizer: str
    steps_read: int = 0
    nonfinite_steps: int = 0
    nonfinite_in_a_row: int = 0
    first_nonfinite: tuple[int, str] | None = None
    largest_norm: float | None = None
    largest_step: int | None = None
    largest_tensor: str | None = None
    clipped: float = 0.0
    elements: float = 0.0
    names: tuple[str, ...] = ()
    _numel: Tensor = field(default_factory=lambda: torch.zeros(0))
    _newest: tuple[int, Tensor, tuple[str, ...]] | None = None

    def extend(self, tensors: Sequence[TensorInfo]) -> None:
        """Learn names and sizes of all tensors, the known ones first."""
        numel = torch.tensor([t.numel for t in tensors], dtype=torch.float64)
        self.names, self._numel = tuple(t.name for t in tensors), numel

    def add(self, step: int, packed: Tensor, columns: tuple[str, ...]) -> None:
        """Take in one step: ``packed`` is a host tensor [columns, T]."""
        row = {name: packed[number].double() for number, name in enumerate(columns)}
        counts = row["nonfinite_count"]
        nonfinite = float(counts.sum())
        if nonfinite > 0 and self.first_nonfinite is None:
            # The last in the model's order is the first in that of the backward pass.
            self.first_nonfinite = (step, self.names[int(counts.nonzero().max())])
        self.steps_read += 1
        self.nonfinite_steps += nonfinite > 0
        self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if nonfinite > 0 else 0
        present = row["present"]
        self.elements += float((self._numel[: len(present)] * present).sum())
        self.clipped += float(row["clipped_count"].sum())
        norms = row["norm"]
        norm = _joint(norms)
        # A step with NaN or Inf is no finite step: its norm covers only what was left of it.
        if (
            len(norms)
            and nonfinite == 0
            and (self.largest_norm is None or norm > self.largest_norm)
        ):
            self.largest_norm, self.largest_step = norm, step
            self.largest_tensor = self.names[int(norms.argmax())]
        self._newest = (step, packed, columns)

    def latest(self) -> Latest | None:
        """Return the newest statistics, or None before the first."""
        if self._newest is None:
            return None
        step, packed, columns = self._newest
        return Latest(
            step=step,
            optimizer=self.optimizer,
            names=self.names[: packed.shape[1]],
            columns=dict(zip(columns, packed.tolist(), strict=True)),
            global_norm=_joint(packed[columns.index("norm")].double()),
        )


def _joint(norms: Tensor) -> float:
    return math.sqrt(float(norms.square().sum()))
