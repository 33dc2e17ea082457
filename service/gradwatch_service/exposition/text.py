r"""The Prometheus text format, version 0.0.4.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, "Text-based format". A label
value may be any Unicode text with ``\``, ``"`` and line feed escaped.
"""

import hashlib
import math
from collections.abc import Iterable
from functools import lru_cache

from prometheus_client import CollectorRegistry

__all__ = ["CONTENT_TYPE", "MAX_LABEL_CHARACTERS", "escape", "header", "labels", "registry_text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_LABEL_CHARACTERS = 128
_HASH_CHARACTERS = 8

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@lru_cache(maxsize=16_384)
def escape(value: str) -> str:
    """The label value as it stands between the quotes: no value can end its line or its quotes.

    Longer ones are cut. What UTF-8 cannot say (half of a surrogate pair) and NUL, which keeps
    families apart while a page is put together, are replaced. Either way the value then ends in a
    hash of the whole, so that different values stay different.
    """
    said = value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if said != value or len(said) > MAX_LABEL_CHARACTERS:
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        kept = MAX_LABEL_CHARACTERS - _HASH_CHARACTERS - 1
        said = f"{said[:kept]}~{digest[:_HASH_CHARACTERS]}"
    return said.translate(_ESCAPES)


def labels(pairs: Iterable[tuple[str, str]]) -> str:
    """``name="value",...`` with the values escaped, without the braces."""
    return ",".join(f'{name}="{escape(value)}"' for name, value in pairs)


def header(name: str, kind: str, text: str) -> str:
    """The HELP and TYPE lines of a family."""
    described = text.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {described}\n# TYPE {name} {kind}\n"


def registry_text(registry: CollectorRegistry) -> str:
    """The instruments of a registry, without the ``_created`` series that double every counter.

    Those tell when a counter was made. The service makes all of its counters at its start, which
    ``process_start_time_seconds`` tells already.
    """
    parts: list[str] = []
    for metric in registry.collect():
        kind = "gauge" if metric.type in ("info", "stateset", "unknown") else metric.type
        name = f"{metric.name}_total" if kind == "counter" else metric.name
        parts.append(header(name, kind, metric.documentation))
        for sample in metric.samples:
            # A gauge that is read by a function may say NaN, which would poison every sum over it.
            if sample.name.endswith("_created") or not math.isfinite(sample.value):
                continue
            inside = labels(sample.labels.items())
            braces = f"{{{inside}}}" if inside else ""
            parts.append(f"{sample.name}{braces} {float(sample.value)!r}\n")
    return "".join(parts)
