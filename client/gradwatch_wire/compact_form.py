"""``application/x-gradwatch``: a JSON header, then the columns' bytes.

8-byte little-endian length of the header, the header, the columns. The header is the document with
each array replaced by ``{"dtype": "f4", "shape": [2, 1], "offset": 0}``; offsets count from the end
of the header; short arrays may stay lists. The layout is that of safetensors: written with the
standard library, read by numpy without a copy.
"""

import json
import math
from typing import Any, TypeGuard

from gradwatch_wire.column import ITEM_BYTES, Column
from gradwatch_wire.document import parse, spell
from gradwatch_wire.errors import Problem, WireError
from gradwatch_wire.json_form import read_list
from gradwatch_wire.report import Report

__all__ = ["CONTENT_TYPE", "MAX_HEADER_BYTES", "decode", "encode"]

CONTENT_TYPE = "application/x-gradwatch"
MAX_HEADER_BYTES = 8 * 2**20
_ALIGNMENT = 8


def encode(report: Report) -> bytes:
    """The report's compact form. No Python object is made per number."""
    payload = bytearray()

    def write(column: Column) -> dict[str, Any]:
        # Aligned, so that a reader may use the bytes in place whatever their type.
        payload.extend(bytes(-len(payload) % _ALIGNMENT))
        offset = len(payload)
        payload.extend(column.data)
        return {"dtype": column.dtype, "shape": column.shape, "offset": offset}

    header = json.dumps(spell(report, write), separators=(",", ":"), allow_nan=False).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return b"".join((len(header).to_bytes(8, "little"), header, payload))


def decode(body: bytes | bytearray | memoryview) -> Report:
    """Read a compact body; its columns are views of it, not copies.

    Every length, offset and shape is checked against the body before it is used, and columns
    together never claim more bytes than the body has.

    Raises:
        WireError: It does not keep to the format; the field is named.
    """
    view = memoryview(body)
    if len(view) < 8:
        raise WireError(Problem("header", f"{len(view)} bytes given; at least 8 are needed"))
    length = int.from_bytes(view[:8], "little")
    if length > min(len(view) - 8, MAX_HEADER_BYTES):
        raise WireError(
            Problem(
                "header",
                f"length {length} given; the body has {len(view) - 8} bytes after the length, "
                f"allowed: at most {MAX_HEADER_BYTES}",
            )
        )
    return parse(_header(view[8 : 8 + length]), _Payload(view[8 + length :]).read)


def _header(data: memoryview) -> object:
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise WireError(Problem("header", f"not JSON: {why[:120]}")) from None


class _Payload:
    """The bytes after the header, handed out column by column."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._left = len(data)

    def read(
        self,
        given: object,
        dtypes: tuple[str, ...],
        *,
        at: str,
        dimensions: int,
        pad: int = 0,
        nulls: bool = False,
    ) -> Column:
        if not isinstance(given, dict):
            return read_list(given, dtypes, at=at, dimensions=dimensions, pad=pad, nulls=nulls)
        dtype, shape, offset = given.get("dtype"), given.get("shape"), given.get("offset")
        if not isinstance(dtype, str) or dtype not in dtypes:
            raise WireError(
                Problem(f"{at}.dtype", f"{dtype!r:.40} given; allowed: {', '.join(dtypes)}")
            )
        if not isinstance(shape, list) or len(shape) != dimensions or not all(map(_is_size, shape)):
            raise WireError(
                Problem(f"{at}.shape", f"{shape!r:.60} given; allowed: {dimensions} sizes")
            )
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        if not _is_size(offset) or offset + nbytes > len(self._data):
            raise WireError(
                Problem(
                    f"{at}.offset",
                    f"{offset!r:.40} given for {nbytes} bytes; {len(self._data)} bytes follow the header",
                )
            )
        self._left -= nbytes
        if self._left < 0:
            raise WireError(Problem(f"{at}.offset", "columns overlap"))
        return Column(dtype, tuple(shape), self._data[offset : offset + nbytes])


def _is_size(given: object) -> TypeGuard[int]:
    return isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**48
