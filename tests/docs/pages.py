"""The documents as data: their code blocks, with page and line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The changelog tells of the past and need not run today.
PAGES = sorted(
    [*ROOT.glob("docs/**/*.md"), *(p for p in ROOT.glob("*.md") if p.name != "CHANGELOG.md")]
)

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*)\s*$")
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        line: Where its first line stands in the page, counted from 1.
        not_run: The page's reason for leaving it out of the test, or None.
    """

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page, in order."""
    opened: tuple[int, str, str, str | None] | None = None
    lines: list[str] = []
    previous = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if opened is None and fence:
            reason = NOT_RUN.search(previous)
            opened = (number + 1, fence["indent"], fence["language"], reason and reason["reason"])
            lines = []
        elif opened is not None and fence:
            start, _, language, why = opened
            yield Block(page, start, language, "\n".join(lines) + "\n", why)
            opened = None
        elif opened is not None:
            lines.append(line.removeprefix(opened[1]))
        previous = line
    assert opened is None, f"{page.name}: a code block is not closed"


def name(page: Path) -> str:
    """How a page is called in test names and messages."""
    return page.relative_to(ROOT).as_posix()
