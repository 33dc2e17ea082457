"""Bodies as bytes: read raw, decompressed within bounds, parsed without trust."""

from __future__ import annotations

import contextlib
import json
import threading
import zlib
from typing import Any

import orjson
import zstandard
from fastapi import Request

from gradwatch_service.access.gate import JSON_TYPE, media_type
from gradwatch_service.problems import ServiceError

__all__ = ["ENCODINGS", "decompress", "parse_json", "read_json"]

ENCODINGS = ("identity", "gzip", "zstd")
PIECE = 64 * 1024
_local = threading.local()


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo a Content-Encoding; never makes more than ``limit`` bytes.

    Raises:
        ServiceError: 415 for an unknown encoding, 413 beyond the limit, 400 when the bytes are not
            of that encoding or incomplete.
    """
    encoding = encoding.strip().lower() or "identity"
    if encoding == "identity":
        return body
    if encoding not in ENCODINGS:
        raise ServiceError(
            415,
            "unsupported_encoding",
            f"Content-Encoding {encoding[:40]!r} given; allowed: {', '.join(ENCODINGS)}",
            headers={"Accept-Encoding": ", ".join(ENCODINGS)},
        )
    try:
        return _gunzip(body, limit) if encoding == "gzip" else _unzstd(body, limit)
    except (zlib.error, zstandard.ZstdError, EOFError):
        raise ServiceError(
            400, "malformed", f"the body is not complete, valid {encoding}"
        ) from None


def parse_json(body: bytes) -> Any:
    """Parse JSON; NaN and Infinity are read, so that the field they are in can be named.

    Raises:
        ServiceError: 400, the body is not JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        why = str(error) if not isinstance(error, RecursionError) else "nested too deeply"
        raise ServiceError(400, "malformed", f"the body is not JSON: {why[:200]}") from None


async def read_json(request: Request) -> Any:
    """Read a request's JSON body, compressed or not, within the service's limits.

    Raises:
        ServiceError: Another content type, too large, not JSON.
    """
    settings = request.app.state.service.settings
    kind = media_type(request.headers.get("content-type"))
    if kind != JSON_TYPE:
        raise ServiceError(
            415, "unsupported_media_type", f"Content-Type {kind!r} given; allowed: {JSON_TYPE}"
        )
    body = await request.body()
    encoding = request.headers.get("content-encoding", "")
    return parse_json(decompress(body, encoding, settings.max_decompressed_bytes))


def _gunzip(body: bytes, limit: int) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    data = inflate.decompress(body, limit + 1)
    if len(data) > limit:
        raise _too_large(limit)
    if not inflate.eof:
        raise EOFError
    return data


def _unzstd(body: bytes, limit: int) -> bytes:
    inflate = _decompressor()
    claimed = zstandard.frame_content_size(body)
    if claimed > limit:
        raise _too_large(limit)
    if claimed > 0:
        with contextlib.suppress(zstandard.ZstdError):
            return inflate.decompress(body, max_output_size=limit, allow_extra_data=False)
    # Several frames, or one that does not say its size: piece by piece, up to the limit.
    reader = inflate.stream_reader(body, read_across_frames=True)
    pieces, total = [], 0
    while piece := reader.read(PIECE):
        total += len(piece)
        if total > limit:
            raise _too_large(limit)
        pieces.append(piece)
    if not pieces and body[:4] != b"\x28\xb5\x2f\xfd":
        raise EOFError
    return b"".join(pieces)


def _decompressor() -> zstandard.ZstdDecompressor:
    # One for each thread: they are costly to make and not to be shared.
    if not hasattr(_local, "decompressor"):
        # The window is bounded, since it is allocated before anything is read.
        _local.decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
    made: zstandard.ZstdDecompressor = _local.decompressor
    return made


def _too_large(limit: int) -> ServiceError:
    return ServiceError(
        413,
        "too_large",
        f"the body is larger than {limit} bytes once decompressed; send fewer steps at a time",
        headers={"Connection": "close"},
    )
