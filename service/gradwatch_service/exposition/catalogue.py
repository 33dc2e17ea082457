"""Every metric of runs and groups: its name, type, help and labels. docs/metrics.md agrees."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["GROUP_LABELS", "RUN_LABELS", "Family", "Kind", "family"]

Kind = Literal["counter", "gauge", "histogram"]

RUN_LABELS = ("project", "run")
GROUP_LABELS = (*RUN_LABELS, "group")


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.

    Attributes:
        name: Its full name.
        kind: Its type.
        text: Its help.
        labels: Its labels, ``le`` aside.
        lasting: Whether it stays for a day after the last report instead of five minutes, so
            that silence can be told from absence.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...]
    lasting: bool = False


def family(
    name: str,
    kind: Kind,
    text: str,
    *labels: str,
    group: bool = False,
    lasting: bool = False,
) -> Family:
    """A family of runs, or of groups of runs, with these labels besides."""
    return Family(name, kind, text, (*(GROUP_LABELS if group else RUN_LABELS), *labels), lasting)
