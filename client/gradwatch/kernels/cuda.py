"""The GPU kernel: a few launches for all tensors. What they do is in programs.py."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from gradwatch.kernels import programs
from gradwatch.kernels.base import Gradients, Histogram
from gradwatch.kernels.memory import split
from gradwatch.kernels.reference import Reference, count_magnitudes, round_down

__all__ = ["Cuda"]

# dtype: what Triton calls it, and what is computed in.
_KINDS = {
    torch.float32: (tl.float32, tl.float32),
    torch.bfloat16: (tl.bfloat16, tl.float32),
    torch.float16: (tl.float16, tl.float32),
    torch.float64: (tl.float64, tl.float64),
}
# What is computed in, as torch calls it.
_WIDE = {d: torch.float64 if d is torch.float64 else torch.float32 for d in _KINDS}

# A sum may keep the digits that a product of its own would have rounded away.
_OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


@dataclass(frozen=True, slots=True)
class Launch:
    """The blocks of all gradients of one dtype, side by side.

    Attributes:
        dtype: Of the gradients.
        first: Number of its first block.
        blocks: How many there are.
    """

    dtype: torch.dtype
    first: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Which block has which elements of which tensor; the same from step to step, so made once."""

    key: object
    launches: list[Launch]
    blocks: int
    numel: Tensor  # [T]
    present: Tensor  # [T]
    block_tensor: Tensor  # [blocks]
    block_start: Tensor  # [blocks]
    begins: Tensor  # [T] number of each tensor's first block
    ends: Tensor  # [T] and of the block after its last
    none: Tensor  # [T] limits that hold nothing


class Cuda:
    """The kernel in Triton. See :class:`gradwatch.kernels.base.Kernel` for the contract.

    Gradients with gaps in their memory are left to the reference kernel, one by one. Nothing waits for
    the device: addresses travel from pinned memory.
    """

    name = "cuda"
    dtypes = tuple(_KINDS)

    def __init__(self) -> None:
        self._reference = Reference()
        self._layout: Layout | None = None
        self._addresses: tuple[list[int], Tensor] | None = None

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
        layout, addresses, rest = self._arguments(grads, rows.device)
        table = rows.new_empty(programs.PARTS, layout.blocks)
        with _current(rows.device):
            for launch in layout.launches:
                kind, wide = _KINDS[launch.dtype]
                bounds = layout.none if limits is None else round_down(limits, launch.dtype)
                programs.measure[(launch.blocks,)](
                    *(
                        addresses,
                        layout.numel,
                        layout.block_tensor,
                        layout.block_start,
                        launch.first,
                    ),
                    *(bounds.to(_WIDE[launch.dtype]), table, layout.blocks),
                    zero=zero_nonfinite,
                    kind=kind,
                    wide=wide,
                    size=programs.BLOCK,
                    **_OPTIONS,
                )
            programs.join[(len(grads),)](
                *(layout.numel, layout.present, layout.begins, layout.ends),
                *(table, layout.blocks, rows, len(grads)),
            )
        if rest is not None:
            self._reference.measure_(rest, limits, rows, zero_nonfinite=zero_nonfinite)

    def scale_(self, grads: Gradients, coefficients: Tensor, rows: Tensor) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        layout, addresses, rest = self._arguments(grads, rows.device)
        table = rows.new_empty(programs.PARTS, layout.blocks)
        with _current(rows.device):
            for launch in layout.launches:
                kind, wide = _KINDS[launch.dtype]
                programs.scale[(launch.blocks,)](
                    *(
                        addresses,
                        layout.numel,
                        layout.block_tensor,
                        layout.block_start,
                        launch.first,
                    ),
                    *(coefficients, round_down(coefficients, _WIDE[launch.dtype])),
                    *(table, layout.blocks),
                    kind=kind,
                    wide=wide,
                    size=programs.BLOCK,
                    **_OPTIONS,
                )
            programs.join_scaled[(len(grads),)](
                *(layout.present, layout.begins, layout.ends, coefficients),
                *(table, layout.blocks, rows, len(grads)),
            )
        if rest is not None:
            self._reference.scale_(rest, coefficients, rows)

    def zero_(self, grads: Gradients, when: Tensor) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        self._reference.zero_(grads, when)

    def sample(self, tensors: Gradients) -> Tensor:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        return self._reference.sample(tensors)

    def products(self, a: Tensor, b: Tensor, lengths: Sequence[int]) -> Tensor:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        return self._reference.products(a, b, lengths)

    def _arguments(
        self, grads: Gradients, device: torch.device
    ) -> tuple[Layout, Tensor, Gradients | None]:
        """Return the layout, each tensor's address on the device, and the gradients without one."""
        if self not in grads.notes:
            tensors, rest = split(grads, self.dtypes)
            addresses = [0 if t is None else t.data_ptr() for t in tensors]
            if self._addresses is None or self._addresses[0] != addresses:
                self._addresses = addresses, _sent(torch.tensor(addresses), device)
            grads.notes[self] = self._layout_of(tensors, device), self._addresses[1], rest
        found: tuple[Layout, Tensor, Gradients | None] = grads.notes[self]
        return found

    def _layout_of(self, tensors: Sequence[Tensor | None], device: torch.device) -> Layout:
        sizes = [-1 if t is None else t.numel() for t in tensors]
        key = device, sizes, [None if t is None else t.dtype for t in tensors]
        if self._layout is None or self._layout.key != key:
            self._layout = _layout(key, tensors, device)
        return self._layout


def _layout(key: object, tensors: Sequence[Tensor | None], device: torch.device) -> Layout:
    owners: list[int] = []
    starts: list[int] = []
    launches = []
    begins, ends = [0] * len(tensors), [0] * len(tensors)
    for dtype in _KINDS:
        first = len(owners)
        for index, tensor in enumerate(tensors):
            if tensor is not None and tensor.dtype is dtype:
                begins[index] = len(owners)
                starts += range(0, tensor.numel(), programs.BLOCK)
                owners += [index] * (len(starts) - len(owners))
                ends[index] = len(owners)
        if len(owners) > first:
            launches.append(Launch(dtype, first, len(owners) - first))

    def sent(numbers: Sequence[int]) -> Tensor:
        return _sent(torch.tensor(numbers, dtype=torch.int64), device)

    return Layout(
        key=key,
        launches=launches,
        blocks=len(owners),
        numel=sent([0 if t is None else t.numel() for t in tensors]),
        present=sent([int(t is not None) for t in tensors]),
        block_tensor=sent(owners),
        block_start=sent(starts),
        begins=sent(begins),
        ends=sent(ends),
        none=torch.full((len(tensors),), torch.inf, device=device),
    )


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it: from pinned memory, which torch keeps until then."""
    if device.type == "cpu":  # Triton's interpreter
        return numbers
    return numbers.pin_memory().to(device, non_blocking=True)


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)
