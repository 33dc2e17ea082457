"""Tables and numbers as people read them."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["ago", "console", "number", "share", "table"]

STATE_STYLES = {
    "healthy": "green",
    "finished": "dim",
    "warming_up": "cyan",
    "silent": "yellow",
    "interrupted": "yellow",
    "critical": "red",
    "warning": "yellow",
}
BAD = ("exploding", "vanishing", "oscillating", "nonfinite", "failed")


def console() -> Console:
    """Where tables go: standard output, in the width it has, plain when it is a pipe."""
    return Console(highlight=False, soft_wrap=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose numbers stand right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    rows = [list(row) for row in rows]
    for index, heading in enumerate(headings):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        made.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Text, not markup: a tensor's name may hold square brackets.
        made.add_row(*(Text(cell, style=style(cell)) for cell in row))
    return made


def style(word: str) -> str:
    """Colour of a state or severity; none for anything else."""
    return "red" if word in BAD else STATE_STYLES.get(word, "")


def number(value: Any) -> str:
    """Four significant digits, or a dash for what was not measured."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def share(value: float | None) -> str:
    """A share as per cent."""
    return "-" if value is None else f"{100 * value:.1f} %"


def ago(when: float | None) -> str:
    """How long ago a Unix time was, in its largest unit."""
    if when is None:
        return "never"
    seconds = max(0.0, time.time() - when)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _is_number(cell: str) -> bool:
    text = cell.removesuffix(" %")
    if text == "-":
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
