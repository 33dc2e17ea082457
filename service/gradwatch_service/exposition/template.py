r"""The lines of a run with a place for each value: labels are written and escaped once.

Runs of the same model differ in little more than their names, so what they share is kept, with
places for the rest. A place is NUL and a letter: escaping leaves no NUL in a label.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from gradwatch_service.exposition.facts import Facts
from gradwatch_service.exposition.group_series import GROUP_SERIES
from gradwatch_service.exposition.series import RUN_SERIES, Series, Value
from gradwatch_service.exposition.text import labels

__all__ = ["ALL_SERIES", "CORE_FAMILIES", "CUT", "Template", "Templates"]

ALL_SERIES: tuple[Series, ...] = (*RUN_SERIES, *GROUP_SERIES)
# What a run keeps when a page is too full for its groups: the run's own families.
CORE_FAMILIES = len(RUN_SERIES)

_CUT, _RUN, _INFO, _VALUE = "\0c", "\0r", "\0i", "\0v"
CUT = _CUT.encode()
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Template:
    """The lines of one run.

    Attributes:
        key: What the labels depend on; another key needs another template.
        text: The lines, ``%s`` for each value, families separated by :data:`CUT`.
    """

    key: tuple[object, ...]
    text: str


class Templates:
    """Makes templates. Not safe to share between threads."""

    def __init__(self) -> None:
        self._shapes: OrderedDict[tuple[object, ...], str] = OrderedDict()

    def get(
        self,
        facts: Facts,
        values: Sequence[Sequence[Value]],
        missing: tuple[int, ...],
        last: Template | None,
    ) -> Template:
        """The template of a run: the last one, while nothing of its labels has changed.

        Args:
            facts: The run.
            values: Its values by family, of the families that are shown.
            missing: Places of the values that are None.
            last: The one of the page before.
        """
        shape = (
            facts.groups,
            tuple(facts.counters.dropped),
            tuple(onset[:3] for onset in facts.onsets),
            tuple(map(len, values)),
            missing,
        )
        info = facts.run.info
        key = (info, *shape)
        if last is not None and last.key == key:
            return last
        run = labels([("project", info.project), ("run", facts.run.run)])
        ((_, described),) = RUN_SERIES[0].labels(facts)
        text = self._shape(shape, facts, values)
        text = text.replace(_RUN, _percent(run)).replace(_INFO, _percent(described))
        return Template(key, text)

    def _shape(
        self, key: tuple[object, ...], facts: Facts, values: Sequence[Sequence[Value]]
    ) -> str:
        known = self._shapes.get(key)
        if known is None:
            known = self._shapes[key] = _write(facts, values)
            if len(self._shapes) > _REMEMBERED:
                self._shapes.popitem(last=False)
        return known


def _write(facts: Facts, values: Sequence[Sequence[Value]]) -> str:
    parts: list[str] = []
    for index, (series, numbers) in enumerate(zip(ALL_SERIES, values, strict=False)):
        # The lasting families of a quiet run are written, the others have no values: no labels.
        pairs = series.labels(facts) if numbers else ()
        # The first family describes the run: its labels are the run's own.
        if index == 0:
            pairs = [("", _INFO) for _ in pairs]
        name = series.family.name
        lines = [
            f"{name}{suffix}{{{_RUN},{extra}}} {_VALUE}\n"
            if extra
            else f"{name}{suffix}{{{_RUN}}} {_VALUE}\n"
            for (suffix, extra), value in zip(pairs, numbers, strict=True)
            if value is not None
        ]
        parts.append("".join(lines))
    return _percent(_CUT.join(parts)).replace(_VALUE, "%s")


def _percent(text: str) -> str:
    return text.replace("%", "%%")
