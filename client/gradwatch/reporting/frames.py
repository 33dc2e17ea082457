"""Frames of the spool's files: length and CRC before each, so that a torn tail is seen as one."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO

__all__ = ["DELIVERY", "FINISH", "IDENTITY", "MAGIC", "MANIFEST", "Frame", "pack", "unpack"]

MAGIC = b"GWSPOOL1"
IDENTITY, MANIFEST, DELIVERY, FINISH = b"I", b"M", b"D", b"F"
MAX_PAYLOAD_BYTES = 64 * 2**20
_HEAD = Struct("<II")  # payload length, CRC-32 of the payload


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        kind: One byte.
        body: What it carries.
        end: Where the next frame begins, in bytes from the beginning of the file.
    """

    kind: bytes
    body: bytes
    end: int


def pack(kind: bytes, body: bytes) -> bytes:
    """A frame's bytes."""
    payload = kind + body
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def unpack(file: BinaryIO, start: int = 0) -> Iterator[Frame]:
    """The whole frames of a file, from ``start`` to the first that is torn or damaged."""
    file.seek(start)
    if start == 0:
        if file.read(len(MAGIC)) != MAGIC:
            return
        start = len(MAGIC)
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        length, checksum = _HEAD.unpack(head)
        if not 1 <= length <= MAX_PAYLOAD_BYTES:
            return
        payload = file.read(length)
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        start += _HEAD.size + length
        yield Frame(payload[:1], payload[1:], start)
