"""Gradients cut and stacked into matrices, so that neither size nor number decides what a pass costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.kernels import foreach
from gradwatch.kernels.base import Gradients

__all__ = ["Families", "Family", "Piece", "Scratch"]

# Elements looked at together: what fits a CPU's second-level cache, or enough to fill a GPU. Counts of
# so many elements are exact in float32.
_CPU_SIZE = 1 << 17
_DEVICE_SIZE = 1 << 22


@dataclass(frozen=True, slots=True)
class Piece:
    """Some whole tensors of a family, or a part of one.

    Attributes:
        tensors: One tensor, or several of one shape.
        index: Where the first of them stands in the family.
        start: First element; not 0 only in a later part of a single tensor.
        stop: The element to end before.
    """

    tensors: Sequence[Tensor]
    index: int
    start: int
    stop: int

    def matrix(self) -> tuple[Tensor, bool]:
        """Return one row per tensor, and whether writing to it is writing to the tensors."""
        if len(self.tensors) > 1:
            # Not `view`: a stack of channels-last tensors is not in the order of their elements.
            return torch.stack(tuple(self.tensors)).reshape(len(self.tensors), -1), False
        tensor = self.tensors[0]
        if tensor.is_contiguous():
            return tensor.view(1, -1)[:, self.start : self.stop], True
        return tensor.reshape(1, -1), False

    def write_(self, matrix: Tensor) -> None:
        """Copy a matrix that is not the tensors' own memory back."""
        rows = matrix.view(len(self.tensors), *self.tensors[0].shape).unbind()
        foreach.copy_(list(self.tensors), list(rows))


class Scratch:
    """Memory for a pass over pieces, taken once: a fresh page for every temporary costs more than its use.

    Args:
        pieces: What it has to do for, one at a time.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        first = pieces[0].tensors[0]
        self.dtype = torch.float64 if first.dtype is torch.float64 else torch.float32
        largest = max(len(p.tensors) * (p.stop - p.start) for p in pieces)
        self._memory = torch.empty(5, largest, dtype=self.dtype, device=first.device)

    def like(self, matrix: Tensor) -> list[Tensor]:
        """Return five matrices of this shape, in float32 or float64, with anything in them."""
        return list(self._memory[:, : matrix.numel()].view(5, *matrix.shape).unbind())


@dataclass(frozen=True, slots=True)
class Family:
    """Gradients of one dtype and shape.

    Attributes:
        numel: Elements of each, above 0.
        members: Where each stands among all gradients.
        order: The same as an int64 tensor on the gradients' device.
        apart: Elements of one piece; no less than ``numel`` where tensors are not cut.
    """

    numel: int
    members: tuple[int, ...]
    order: Tensor
    apart: int

    def pieces(self, grads: Gradients) -> list[Piece]:
        """Return pieces that cover every member once, each tensor's parts one after the other."""
        tensors = [grads.tensors[i].detach() for i in self.members]  # type: ignore[union-attr]  # members are there
        together = max(1, self.apart // self.numel)
        if together > 1:
            starts = range(0, len(tensors), together)
            return [Piece(tensors[i : i + together], i, 0, self.numel) for i in starts]
        cuts = range(0, self.numel, self.apart)
        return [
            Piece((tensor,), i, start, min(start + self.apart, self.numel))
            for i, tensor in enumerate(tensors)
            for start in cuts
        ]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return [F, T, parts of each tensor] from one [F, rows] per piece, in order."""
        return torch.cat(tuple(parts), 1).view(len(parts[0]), len(self.members), -1)


class Families:
    """Sorts gradients by dtype and shape; remembers how, since that rarely changes."""

    def __init__(self) -> None:
        self._key: object = None
        self._families: list[Family] = []
        self._empty: list[int] = []

    def of(self, grads: Gradients) -> tuple[list[Family], list[int]]:
        """Return the families of all gradients with elements, and where those without stand."""
        marks = [
            None if g is None else (g.dtype, g.shape, g.is_contiguous(), g.device) for g in grads
        ]
        if marks != self._key:
            found: dict[object, list[int]] = {}
            for index, mark in enumerate(marks):
                if mark is not None and grads.numel[index]:
                    found.setdefault(mark, []).append(index)
            self._families = [_family(grads, members) for members in found.values()]
            self._empty = [i for i, mark in enumerate(marks) if mark and not grads.numel[i]]
            self._key = marks
        return self._families, self._empty


def _family(grads: Gradients, members: Sequence[int]) -> Family:
    first = grads.tensors[members[0]]
    numel = grads.numel[members[0]]
    size = _CPU_SIZE if first.device.type == "cpu" else _DEVICE_SIZE  # type: ignore[union-attr]  # members are there
    # Memory with gaps has no parts that are views: a copy of the whole is taken.
    apart = size if first.is_contiguous() else max(size, numel)  # type: ignore[union-attr]  # as above
    order = torch.tensor(members, device=first.device)  # type: ignore[union-attr]  # as above
    return Family(numel, tuple(members), order, apart)
