"""One run's part of a page, kept until the run changes: text by family, ready to be joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from gradwatch_service.exposition.facts import Facts
from gradwatch_service.exposition.group_series import GROUP_SERIES
from gradwatch_service.exposition.series import RUN_SERIES, Series, Value
from gradwatch_service.exposition.text import labels

__all__ = ["ALL_SERIES", "CORE_FAMILIES", "Block", "Template", "write_block"]

ALL_SERIES: tuple[Series, ...] = (*RUN_SERIES, *GROUP_SERIES)
# What a run keeps when a page is too full for its groups: the run's own families.
CORE_FAMILIES = len(RUN_SERIES)

_LASTING = tuple(series.family.lasting for series in ALL_SERIES)
# No label holds it: escaping takes it out.
_SEPARATOR = "\0"
_CUT = _SEPARATOR.encode()


@dataclass(frozen=True, slots=True)
class Template:
    """The labels of a run's series, escaped once, with a place for each value.

    Attributes:
        key: What the labels depend on; another key needs another template.
        text: The lines, ``%s`` for each value, families apart.
    """

    key: tuple[object, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """One run's lines.

    Attributes:
        families: UTF-8 by family, in the order of ``ALL_SERIES``.
        series: Lines in all of them.
        core_series: Lines in the run's own families.
        dropped: Series left out for the limit per run.
        template: For the next time.
    """

    families: tuple[bytes, ...]
    series: int
    core_series: int
    dropped: int
    template: Template

    @property
    def core(self) -> tuple[bytes, ...]:
        """The run's own families, with nothing in place of its groups."""
        return self.families[:CORE_FAMILIES] + (b"",) * (len(ALL_SERIES) - CORE_FAMILIES)


def write_block(facts: Facts, *, fresh: bool, max_series: int, template: Template | None) -> Block:
    """Write a run's lines.

    Args:
        facts: The run.
        fresh: Whether it reported lately; else only the lasting families are written.
        max_series: Families beyond this many series are left out, whole, from the last one on.
        template: The one of the last time; used again while the labels are the same.
    """
    values = [s.values(facts) if fresh or _LASTING[i] else () for i, s in enumerate(ALL_SERIES)]
    kept, dropped = _within(values, max_series)
    flat = list(chain.from_iterable(values[:kept]))
    missing = tuple(i for i, value in enumerate(flat) if value is None) if None in flat else ()
    lengths = tuple(map(len, values[:kept]))
    onsets = tuple(onset[:3] for onset in facts.onsets)
    drops = tuple(facts.counters.dropped)
    key = (facts.run.info, facts.groups, drops, onsets, lengths, missing)
    if template is None or template.key != key:
        template = Template(key, _template(facts, values[:kept]))
    if missing:
        flat = [value for value in flat if value is not None]
    families = tuple((template.text % tuple(flat)).encode().split(_CUT))
    families += (b"",) * (len(ALL_SERIES) - len(families))
    core_places = sum(lengths[:CORE_FAMILIES])
    core = core_places - sum(1 for i in missing if i < core_places)
    # Groups folded into one are series left out, too: as many for each as a group has here.
    per_group = (len(flat) - core) // max(1, len(facts.groups))
    dropped += facts.counters.folded * per_group
    return Block(families, len(flat), core, dropped, template)


def _within(values: Sequence[Sequence[Value]], limit: int) -> tuple[int, int]:
    """How many families fit, and how many series do not."""
    total = 0
    for index, family in enumerate(values):
        total += len(family)
        if total > limit:
            left_out = chain.from_iterable(values[index:])
            return index, sum(value is not None for value in left_out)
    return len(values), 0


def _template(facts: Facts, values: Sequence[Sequence[Value]]) -> str:
    base = labels([("project", facts.run.info.project), ("run", facts.run.run)])
    parts: list[str] = []
    for series, numbers in zip(ALL_SERIES, values, strict=False):
        name = series.family.name
        # The lasting families of a quiet run are written, the others have no values: no labels.
        pairs = series.labels(facts) if numbers else ()
        lines = [
            f"{name}{suffix}{{{base},{extra}}} \0\n" if extra else f"{name}{suffix}{{{base}}} \0\n"
            for (suffix, extra), value in zip(pairs, numbers, strict=True)
            if value is not None
        ]
        # A label may hold a percent sign, but no NUL: that marks the places.
        parts.append("".join(lines).replace("%", "%%").replace("\0", "%s"))
    return _SEPARATOR.join(parts)
