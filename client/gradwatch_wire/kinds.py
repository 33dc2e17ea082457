"""Every statistic the wire knows by name, and what its numbers may be."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DROP_REASONS", "TENSOR_COLUMNS", "UNKNOWN_COLUMN", "ColumnKind"]


@dataclass(frozen=True, slots=True)
class ColumnKind:
    """What one statistic's numbers may be.

    Attributes:
        dtypes: Allowed types; the first is the usual one.
        count: Whether it counts elements, hence lies between 0 and the tensor's size.
        optional: Whether the column, or its value at a step (null, NaN), may be missing.
        signed: Whether numbers below zero are allowed.
    """

    dtypes: tuple[str, ...]
    count: bool = False
    optional: bool = True
    signed: bool = False


# Why a client drops steps on purpose; an older service shows reasons it does not know all the same.
DROP_REASONS = (
    "queue_full",  # training was faster than the background thread
    "buffer_full",  # the service was away for longer than memory lasts, without a spool
    "spool_full",  # the service was away for longer than the spool lasts
    "rejected",  # the service refused the delivery
    "too_large",  # the service refused it for its size
    "paused",  # the service asked for fewer reports
    "internal",  # a fault of the client's own
)

_MAGNITUDE = ColumnKind(("f4",))
_SIGNED = ColumnKind(("f4",), signed=True)
_COUNT = ColumnKind(("u4", "u8"), count=True)

# A newer client may send statistics this side does not know: they are kept, not refused.
UNKNOWN_COLUMN = ColumnKind(("f4", "f8", "u4", "u8", "u1", "i8"), signed=True)

TENSOR_COLUMNS: Mapping[str, ColumnKind] = MappingProxyType(
    {
        "norm": ColumnKind(("f4",), optional=False),
        "max_abs": _MAGNITUDE,
        "mean": _SIGNED,
        "nonfinite_count": _COUNT,
        "nan_count": _COUNT,
        "zero_count": _COUNT,
        "clipped_count": _COUNT,
        "norm_after": _MAGNITUDE,
        "cosine_after": _SIGNED,
        "present": ColumnKind(("u1",)),
        "threshold": _MAGNITUDE,
        "cosine_previous": _SIGNED,
        "cosine_momentum": _SIGNED,
        "weight_norm": _MAGNITUDE,
        "update_norm": _MAGNITUDE,
        # Over a tensor's rows, filters or the whole vector: the largest |gradient| / |weight|.
        "unit_ratio": _MAGNITUDE,
        # Shards cannot send cosines, which do not add up; dot products do.
        "dot_after": _SIGNED,
        "dot_previous": _SIGNED,
    }
)
