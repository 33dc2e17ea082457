"""A state as bytes and back: arrays exactly, numbers exactly, nothing executed on reading."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

__all__ = ["pack", "unpack"]

_DTYPES: Final = {"<f4", "<f8", "<i8", "<i4", "|u1", "|b1"}
_LENGTH: Final = struct.Struct("<Q")


def pack(values: Mapping[str, Any]) -> bytes:
    """Write arrays, bytes and JSON values; :func:`unpack` restores them bit for bit.

    Numbers that are not finite are allowed in arrays only: JSON has none.
    """
    plain: dict[str, Any] = {}
    index: dict[str, Any] = {}
    blobs: list[bytes] = []
    offset = 0
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            data = np.ascontiguousarray(value).tobytes()
            index[name] = [value.dtype.str, list(value.shape), offset, len(data)]
        elif isinstance(value, bytes):
            data = value
            index[name] = [None, [], offset, len(data)]
        else:
            plain[name] = value
            continue
        blobs.append(data)
        offset += len(data)
    header = json.dumps({"plain": plain, "index": index}, allow_nan=False).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *blobs])


def unpack(data: bytes) -> dict[str, Any]:
    """Read what :func:`pack` wrote.

    Raises:
        ValueError: The bytes are cut short or were not written by :func:`pack`.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        base = _LENGTH.size + length
        header = json.loads(data[_LENGTH.size : base])
        values: dict[str, Any] = dict(header["plain"])
        for name, (dtype, shape, offset, size) in header["index"].items():
            part = data[base + offset : base + offset + size]
            if len(part) != size or (dtype is not None and dtype not in _DTYPES):
                raise ValueError(f"column {name!r} is cut short or of an unknown type")
            values[name] = (
                part if dtype is None else np.frombuffer(part, dtype).reshape(shape).copy()
            )
    except (struct.error, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a packed state: {error}") from error
    return values
