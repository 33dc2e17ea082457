"""One run's part of a page, kept until the run changes: text by family, ready to be joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from gradwatch_service.exposition.facts import Facts
from gradwatch_service.exposition.series import Value
from gradwatch_service.exposition.template import (
    ALL_SERIES,
    CORE_FAMILIES,
    CUT,
    Template,
    Templates,
)

__all__ = ["Block", "write_block"]

_LASTING = tuple(series.family.lasting for series in ALL_SERIES)


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


def write_block(
    facts: Facts, templates: Templates, *, fresh: bool, max_series: int, last: Template | None
) -> Block:
    """Write a run's lines.

    Args:
        facts: The run.
        templates: Where its template comes from.
        fresh: Whether it reported lately; else only the lasting families are written.
        max_series: Families beyond this many series are left out, whole, from the last one on.
        last: The run's template of the page before.
    """
    values = [s.values(facts) if fresh or _LASTING[i] else () for i, s in enumerate(ALL_SERIES)]
    kept, dropped = _within(values, max_series)
    flat = list(chain.from_iterable(values[:kept]))
    missing = tuple(i for i, value in enumerate(flat) if value is None) if None in flat else ()
    template = templates.get(facts, values[:kept], missing, last)
    if missing:
        flat = [value for value in flat if value is not None]
    families = tuple((template.text % tuple(flat)).encode().split(CUT))
    families += (b"",) * (len(ALL_SERIES) - len(families))
    core_places = sum(map(len, values[: min(kept, CORE_FAMILIES)]))
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
