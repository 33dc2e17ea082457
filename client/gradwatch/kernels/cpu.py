"""The compiled kernel: one call of a C function for all tensors. What it does is in cpu.c."""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwatch.kernels.base import Gradients, Histogram
from gradwatch.kernels.memory import split
from gradwatch.kernels.reference import Reference
from gradwatch.kernels.sampling import sample_lengths, slice_counts

__all__ = ["VERSION", "Cpu"]

VERSION = 3  # gw_version() in cpu.c

# enum Dtype in cpu.c.
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_NOTHING = 4


@dataclass(slots=True)
class _Shape:
    """Lengths and dtypes as C takes them; the same from step to step, so made once."""

    numel: tuple[int, ...]
    dtypes: tuple[torch.dtype | None, ...]
    lengths: bytes
    codes: bytes
    plain: bool  # every gradient is there, of a dtype that the C code takes


class Cpu:
    """The kernel in C. See :class:`gradwatch.kernels.base.Kernel` for the contract.

    Gradients that the C code does not take (memory with gaps, a dtype the compiler had no type for)
    are left to the reference kernel, one by one.

    Args:
        library: The compiled cpu.c.
        starter: Address of an OpenMP library's GOMP_parallel; None works in one thread.
    """

    name = "cpu"

    def __init__(self, library: ctypes.CDLL, starter: int | None) -> None:
        self._library = library
        self._reference = Reference()
        self._shape: _Shape | None = None
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        arrays: list[Any] = [number, pointer, pointer, pointer]
        switches: list[Any] = [ctypes.c_int, ctypes.c_uint]
        library.gw_measure.argtypes = [
            *arrays,
            pointer,
            *switches,
            pointer,
            number,
            number,
            pointer,
        ]
        library.gw_scale.argtypes = [*arrays, pointer, ctypes.c_uint, pointer]
        library.gw_zero.argtypes = [*arrays, pointer]
        library.gw_zero.restype = None
        library.gw_use_threads_of.argtypes = [pointer]
        library.gw_use_threads_of.restype = None
        library.gw_use_threads_of(starter)
        library.gw_sample.argtypes = [*arrays, pointer, pointer]
        library.gw_sample.restype = None
        library.gw_products.argtypes = [number, pointer, pointer, pointer, pointer]
        library.gw_products.restype = None
        able = library.gw_dtypes()
        self.dtypes = tuple(dtype for dtype, code in _CODES.items() if able >> code & 1)

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
        addresses, shape, rest = self._arguments(grads)
        failed = self._library.gw_measure(
            len(grads),
            addresses,
            shape.lengths,
            shape.codes,
            None if limits is None else limits.data_ptr(),
            zero_nonfinite,
            torch.get_num_threads(),
            rows.data_ptr(),
            *((0, 0, None) if histogram is None else _places(histogram)),
        )
        _check(failed)
        if rest is not None:
            self._reference.measure_(
                rest, limits, rows, zero_nonfinite=zero_nonfinite, histogram=histogram
            )

    def scale_(self, grads: Gradients, coefficients: Tensor, rows: Tensor) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        addresses, shape, rest = self._arguments(grads)
        failed = self._library.gw_scale(
            len(grads),
            addresses,
            shape.lengths,
            shape.codes,
            coefficients.data_ptr(),
            torch.get_num_threads(),
            rows.data_ptr(),
        )
        _check(failed)
        if rest is not None:
            self._reference.scale_(rest, coefficients, rows)

    def zero_(self, grads: Gradients, when: Tensor) -> None:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        addresses, shape, rest = self._arguments(grads)
        self._library.gw_zero(
            len(grads),
            addresses,
            shape.lengths,
            shape.codes,
            when.data_ptr(),
        )
        if rest is not None:
            self._reference.zero_(rest, when)

    def sample(self, tensors: Gradients) -> Tensor:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        addresses, shape, rest = self._arguments(tensors)
        if rest is not None:  # one piece per tensor, in order: all by one kernel
            return self._reference.sample(tensors)
        out = torch.empty(sum(sample_lengths(shape.numel)))
        self._library.gw_sample(
            len(tensors),
            addresses,
            shape.lengths,
            shape.codes,
            _packed("q", slice_counts(shape.numel)),
            out.data_ptr(),
        )
        return out

    def products(self, a: Tensor, b: Tensor, lengths: Sequence[int]) -> Tensor:
        """See :class:`gradwatch.kernels.base.Kernel`."""
        out = torch.empty(3, len(lengths), dtype=torch.float64)
        self._library.gw_products(
            len(lengths), _packed("q", lengths), a.data_ptr(), b.data_ptr(), out.data_ptr()
        )
        return out

    def _arguments(self, grads: Gradients) -> tuple[bytes, _Shape, Gradients | None]:
        """Return addresses, lengths and dtypes for C, and the gradients that it does not take."""
        if self not in grads.notes:
            grads.notes[self] = self._find_arguments(grads)
        found: tuple[bytes, _Shape, Gradients | None] = grads.notes[self]
        return found

    def _find_arguments(self, grads: Gradients) -> tuple[bytes, _Shape, Gradients | None]:
        shape = self._shape
        if shape is None or shape.numel != grads.numel or shape.dtypes != grads.dtypes:
            codes = bytes([_CODES.get(d, _NOTHING) if d else _NOTHING for d in grads.dtypes])
            plain = all(d in self.dtypes for d in set(grads.dtypes))
            shape = _Shape(grads.numel, grads.dtypes, _packed("q", grads.numel), codes, plain)
            self._shape = shape
        tensors = grads.tensors
        if grads.contiguous and shape.plain:
            return _packed("P", list(map(Tensor.data_ptr, tensors))), shape, None  # type: ignore[arg-type]  # none is None
        flat, rest = split(grads, self.dtypes)
        addresses = _packed("P", [0 if g is None else g.data_ptr() for g in flat])
        numel = tuple(0 if f is None else f.numel() for f in flat)
        codes = bytes([_NOTHING if f is None else _CODES[f.dtype] for f in flat])
        return addresses, _Shape(numel, (), _packed("q", numel), codes, plain=False), rest


def _packed(code: str, numbers: Sequence[int]) -> bytes:
    """Return an array as C has it; several times faster than ctypes makes one."""
    return struct.pack(f"{len(numbers)}{code}", *numbers)


def _places(histogram: Histogram) -> tuple[int, int, int]:
    return histogram.every, histogram.phase, histogram.counts.data_ptr()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("No memory for clipping gradients; nothing was changed.")
