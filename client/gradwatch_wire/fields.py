"""Reading the fields of a JSON object, collecting every problem before refusing it."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from gradwatch_wire.errors import Problem, WireError

__all__ = ["Fields"]

MAX_PROBLEMS = 20
_T = TypeVar("_T")


class Fields:
    """The fields of one JSON object, read by name.

    A field that is missing or null takes its default. What is wrong is noted, a harmless value
    returned in its place, and :meth:`done` raises everything at once.

    Args:
        given: What should be a JSON object.
        at: Path of the object itself, empty for the message.

    Raises:
        WireError: ``given`` is no JSON object.
    """

    def __init__(self, given: object, at: str = "") -> None:
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise WireError(
                Problem(at or "body", f"{type(given).__name__} given; a JSON object is expected")
            )
        self._given: dict[str, object] = given
        self._prefix = f"{at}." if at else ""
        self._problems: list[Problem] = []

    def get(self, name: str) -> object:
        """The field as it came, or None."""
        return self._given.get(name)

    def path(self, name: str) -> str:
        """The field's full path."""
        return self._prefix + name

    def refuse(self, name: str, why: str) -> None:
        """Note that a field is wrong."""
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(self.path(name), why))

    def integer(self, name: str, default: int, low: int = 0, high: int = 2**31) -> int:
        """A whole number in ``[low, high)``."""
        value = self._given.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
            self.refuse(
                name, f"{_shown(value)} given; allowed: a whole number from {low} to {high - 1}"
            )
            return default
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number in ``(low, high]``."""
        value = self._given.get(name)
        if value is None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not low < value <= high
        ):
            self.refuse(name, f"{_shown(value)} given; allowed: above {low}, at most {high}")
            return default
        return float(value)

    def text(self, name: str, default: str, limit: int = 128) -> str:
        """Printable text of 1 to ``limit`` characters."""
        return self.optional_text(name, limit) or default

    def optional_text(self, name: str, limit: int = 128) -> str | None:
        """Printable text of 1 to ``limit`` characters, or None."""
        value = self._given.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not 1 <= len(value) <= limit or not value.isprintable():
            self.refuse(name, f"{_shown(value)} given; allowed: 1 to {limit} printable characters")
            return None
        return value

    def matching(self, name: str, pattern: re.Pattern[str]) -> str | None:
        """Text that matches the pattern in full, or None."""
        value = self._given.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self.refuse(name, f"{_shown(value)} given; allowed: {pattern.pattern}")
            return None
        return value

    def read(self, read: Callable[[], _T], default: _T) -> _T:
        """What ``read`` answers; its problems become this message's."""
        try:
            return read()
        except WireError as error:
            room = MAX_PROBLEMS - len(self._problems)
            self._problems.extend(error.problems[:room])
            return default

    def mapping(self, name: str, limit: int) -> Mapping[str, object]:
        """A JSON object of at most ``limit`` fields; empty when missing."""
        value = self._given.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.refuse(name, f"{type(value).__name__} given; a JSON object is expected")
            return {}
        if len(value) > limit:
            self.refuse(name, f"{len(value)} fields given; allowed: at most {limit}")
            return {}
        return value

    def done(self) -> None:
        """Raise what was noted.

        Raises:
            WireError: At least one field is wrong.
        """
        if self._problems:
            raise WireError(*self._problems)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
