"""Host tensors into the bytes of columns, without a Python object per number."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch_wire import TENSOR_COLUMNS, UNKNOWN_COLUMN, Manifest

__all__ = ["Packer"]

_LARGEST = torch.finfo(torch.float32).max
# torch splits an element-wise operation of more elements over a thread team of its own for every
# calling thread; a second team beside the training's would fight it for the cores.
_SERIAL_ELEMENTS = 32_768


class Packer:
    """Turns the statistics of one step into the bytes of one row of each column.

    Args:
        columns: Names of the rows of the statistics tensor.
        manifest: The tensors, T of them.
    """

    def __init__(self, columns: Sequence[str], manifest: Manifest) -> None:
        # Counts fit u4 unless some tensor has more elements than that.
        self._wide = any(t.numel >= 2**32 for t in manifest.tensors)
        self.dtypes = {name: self._dtype(name) for name in columns}
        self.names = tuple(columns)
        self.tensors = len(manifest.tensors)

    def _dtype(self, name: str) -> str:
        kind = TENSOR_COLUMNS.get(name)
        if kind is None:
            return UNKNOWN_COLUMN.dtypes[0]
        return "u8" if kind.count and self._wide else kind.dtypes[0]

    def pack(self, stats: Tensor) -> dict[str, bytes]:
        """Bytes of one row per column: T items of the column's dtype.

        Args:
            stats: [columns, T] on the host.

        Raises:
            ValueError: The shape is another one.
        """
        if stats.shape != (len(self.names), self.tensors):
            expected = (len(self.names), self.tensors)
            raise ValueError(f"statistics of shape {tuple(stats.shape)}; expected {expected}")
        return {
            name: _bytes(_convert(row, self.dtypes[name], name))
            for name, row in zip(self.names, stats, strict=True)
        }

    def pack_histogram(self, histogram: Tensor) -> bytes:
        """Bytes of [T, bins] counts as u4, or u8 where a tensor is that large."""
        rows = max(1, _SERIAL_ELEMENTS // histogram.shape[-1])
        dtype = "u8" if self._wide else "u4"
        starts = range(0, len(histogram), rows)
        return b"".join(_bytes(_convert(histogram[i : i + rows], dtype, "")) for i in starts)


def _convert(row: Tensor, dtype: str, name: str) -> Tensor:
    if dtype == "f4":
        # What overflows float32 is large, not unknown; only optional columns may be unknown.
        unknown = float("nan") if _optional(name) else 0.0
        return row.clamp(-_LARGEST, _LARGEST).to(torch.float32).nan_to_num(nan=unknown)
    whole = row.nan_to_num(nan=0.0).to(torch.int64) if row.is_floating_point() else row
    # The low half of a two's complement number is the unsigned one.
    return whole.to({"u1": torch.uint8, "u4": torch.int32}.get(dtype, torch.int64))


def _optional(name: str) -> bool:
    return TENSOR_COLUMNS.get(name, UNKNOWN_COLUMN).optional


def _bytes(tensor: Tensor) -> bytes:
    tensor = tensor.contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.numel() else b""
