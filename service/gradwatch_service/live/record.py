"""The counters as bytes, as the store keeps them beside the run."""

from typing import Any

import orjson

from gradwatch_service.live.counters import Counters
from gradwatch_service.live.counts import Counts, GroupCounts
from gradwatch_service.live.newest import GroupNewest, Newest

__all__ = ["dump", "load"]

_VERSION = 1


def dump(counters: Counters) -> bytes:
    """Write the counters; :func:`load` restores them exactly."""
    return orjson.dumps(
        {"version": _VERSION, "counters": counters}, option=orjson.OPT_SERIALIZE_NUMPY
    )


def load(data: bytes) -> Counters:
    """Read what :func:`dump` wrote.

    Raises:
        ValueError: Another version wrote it, or it is damaged.
    """
    try:
        document = orjson.loads(data)
        version = document["version"]
        if version == _VERSION:
            return _counters(document["counters"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the stored counters are damaged: {error!r}") from error
    raise ValueError(
        f"counters of version {version!r} given; this service reads {_VERSION}: upgrade it"
    )


def _counters(obj: dict[str, Any]) -> Counters:
    return Counters(
        **{
            **obj,
            "counts": _counts(obj["counts"]),
            "newest": {key: _newest(value) for key, value in obj["newest"].items()},
            "peaks": tuple((int(slot), float(peak)) for slot, peak in obj["peaks"]),
        }
    )


def _counts(obj: dict[str, Any]) -> Counts:
    groups = {
        name: GroupCounts(
            **{**group, "magnitude": None if group["magnitude"] is None else (*group["magnitude"],)}
        )
        for name, group in obj["groups"].items()
    }
    return Counts(**{**obj, "norm_buckets": (*obj["norm_buckets"],), "groups": groups})


def _newest(obj: dict[str, Any]) -> Newest:
    groups = {name: GroupNewest(**group) for name, group in obj["groups"].items()}
    return Newest(**{**obj, "groups": groups})
