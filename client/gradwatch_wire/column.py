"""A column: numbers of one type and shape as bytes, the same on both sides of the wire."""

import math
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradwatch_wire.errors import Problem, WireError

__all__ = ["ITEM_BYTES", "Column"]

ITEM_BYTES = {"f4": 4, "f8": 8, "u1": 1, "u4": 4, "u8": 8, "i8": 8}
_TYPECODES = {"f4": "f", "f8": "d", "u1": "B", "u4": "I", "u8": "Q", "i8": "q"}
_BOUNDS = {"u1": (0, 2**8), "u4": (0, 2**32), "u8": (0, 2**64), "i8": (-(2**63), 2**63)}
_LARGEST = {"f4": 3.4028234663852886e38, "f8": sys.float_info.max}


@dataclass(frozen=True, slots=True)
class Column:
    """Numbers of one type in C order, little endian.

    Attributes:
        dtype: One of ``f4 f8 u1 u4 u8 i8``.
        shape: Length of each dimension; their product is the number of items.
        data: The items' bytes. ``numpy.frombuffer(data, "<" + dtype)`` reads them without a copy.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def items(self) -> int:
        """How many numbers the column holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Length of ``data`` that dtype and shape demand, in bytes."""
        return self.items * ITEM_BYTES[self.dtype]

    @classmethod
    def from_list(
        cls,
        nested: object,
        dtype: str,
        *,
        at: str,
        dimensions: int = 1,
        pad: int = 0,
        nulls: bool = True,
    ) -> "Column":
        """Pack nested lists of numbers; None becomes NaN where the dtype has one.

        Args:
            nested: Lists nested ``dimensions`` deep, all of one length per depth.
            dtype: One of ``f4 f8 u1 u4 u8 i8``.
            at: The field's path, for the error.
            dimensions: Depth of the nesting.
            pad: Innermost lists of up to this length may be ragged: zeros fill them up.
            nulls: Whether null may stand for "not measured".

        Raises:
            WireError: Not such lists, a value that is no number, not finite or out of range.
        """
        flat, shape = _flatten(nested, dimensions, at, pad)
        convert = _float(dtype) if dtype in _LARGEST else _integer(dtype)
        values: array[Any] = array(_TYPECODES[dtype])
        for index, value in enumerate(flat):
            converted = None if value is None and not nulls else convert(value)
            if converted is None:
                raise WireError(Problem(_place(at, index, shape), _refusal(value, dtype)))
            values.append(converted)
        if sys.byteorder == "big":
            values.byteswap()
        return cls(dtype, shape, values.tobytes())

    def flat(self) -> "array[Any]":
        """The numbers in C order, as a typed array of the standard library (a copy)."""
        values = array(_TYPECODES[self.dtype])
        values.frombytes(self.data)
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def to_list(self) -> list[Any]:
        """The numbers as nested lists; NaN becomes None."""
        items: list[Any] = self.flat().tolist()
        if self.dtype in _LARGEST:
            items = [None if value != value else value for value in items]  # noqa: PLR0124 (NaN is what differs from itself)
        for depth in range(len(self.shape) - 1, 0, -1):
            length, count = self.shape[depth], math.prod(self.shape[:depth])
            items = [items[i * length : (i + 1) * length] for i in range(count)]
        return items


def _float(dtype: str) -> Callable[[object], float | None]:
    largest = _LARGEST[dtype]

    def convert(value: object) -> float | None:
        if value is None:
            return math.nan
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return None
        # An integer may be too large to become a float at all: compare before converting.
        return float(value) if -largest <= value <= largest else None

    return convert


def _integer(dtype: str) -> Callable[[object], int | None]:
    low, high = _BOUNDS[dtype]

    def convert(value: object) -> int | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            return None
        return value if low <= value < high else None

    return convert


def _refusal(value: object, dtype: str) -> str:
    shown = repr(value)[:40]
    if dtype in _LARGEST:
        return f"{shown} given; allowed: a finite number that fits {dtype}, or null where optional"
    low, high = _BOUNDS[dtype]
    return f"{shown} given; allowed: a whole number from {low} to {high - 1}"


def _place(at: str, index: int, shape: tuple[int, ...]) -> str:
    indices: list[int] = []
    for length in reversed(shape):
        index, inner = divmod(index, length)
        indices.insert(0, inner)
    return at + "".join(f"[{i}]" for i in indices)


def _flatten(
    nested: object, dimensions: int, at: str, pad: int
) -> tuple[Sequence[object], tuple[int, ...]]:
    if not isinstance(nested, list):
        raise WireError(Problem(at, f"{type(nested).__name__} given; allowed: a list of numbers"))
    level: list[Any] = nested
    shape = [len(nested)]
    for depth in range(1, dimensions):
        if not all(isinstance(row, list) for row in level):
            raise WireError(Problem(at, f"lists nested {dimensions} deep expected"))
        lengths = {len(row) for row in level}
        width = max(lengths, default=0)
        if len(lengths) > 1:
            # Without a bound on the width one long row would make a small body a large column.
            if depth != dimensions - 1 or width > pad:
                raise WireError(Problem(at, f"rows of different lengths: {sorted(lengths)[:4]}"))
            level = [row + [0] * (width - len(row)) for row in level]
        level = [item for row in level for item in row]
        shape.append(width)
    return level, tuple(shape)
