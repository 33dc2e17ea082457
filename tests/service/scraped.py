"""Reads a page the way Prometheus would, strictly: what it does not understand is an error."""

import math
import re
from dataclasses import dataclass, field

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_LABEL = re.compile(rf'({_NAME})="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
_UNESCAPE = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass
class Scraped:
    """A page as families and samples."""

    kinds: dict[str, str] = field(default_factory=dict)
    help: dict[str, str] = field(default_factory=dict)
    samples: dict[tuple[str, frozenset], float] = field(default_factory=dict)

    def value(self, name, /, **labels):
        """The sample's value, or None."""
        return self.samples.get((name, frozenset(labels.items())))

    def named(self, name):
        """Labels and value of every sample of that name."""
        return [(dict(labels), v) for (known, labels), v in self.samples.items() if known == name]


def read(page: str | bytes) -> Scraped:
    """Parse a page; families must be whole, series unique, values finite."""
    text = page.decode() if isinstance(page, bytes) else page
    assert text.endswith("\n")
    scraped, current, closed = Scraped(), "", set()
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            _, _, name, described = line.split(" ", 3)
            assert name not in scraped.help, f"two families {name}"
            closed.add(current)
            current = name
            scraped.help[name] = described
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current
            scraped.kinds[name] = kind
        else:
            _add(scraped, current, line)
    return scraped


def _add(scraped, family, line):
    match = _SAMPLE.fullmatch(line)
    assert match, f"not a sample (a timestamp, perhaps): {line!r}"
    name, inside, value = match[1], match[2] or "", float(match[3])
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}.get(scraped.kinds[family], ("",))
    assert name in {family + suffix for suffix in suffixes}, f"{name} stands within {family}"
    found = list(_LABEL.finditer(inside))
    assert sum(len(label[0]) for label in found) == len(inside), f"labels of {line!r}"
    labels = {m[1]: re.sub(r'\\["\\n]', lambda e: _UNESCAPE[e[0]], m[2]) for m in found}
    assert len(labels) == len(found), f"a label comes twice: {line!r}"
    assert math.isfinite(value), f"not finite: {line!r}"
    key = (name, frozenset(labels.items()))
    assert key not in scraped.samples, f"a series comes twice: {line!r}"
    scraped.samples[key] = value
