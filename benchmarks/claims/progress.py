"""How far the claims are: a bar in a terminal, a line for each tenth elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress"]

Step = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress() -> Iterator[Step]:
    """Yield what to call with stage, units done and units in all, on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line
        return
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        tasks = {
            stage: bar.add_task(stage, total=None) for stage in ("trying", "tuning", "running")
        }
        yield lambda stage, done, of: bar.update(tasks[stage], completed=done, total=of)


def _line(stage: str, done: int, of: int) -> None:
    if done * 10 // of > (done - 1) * 10 // of:
        print(f"{stage:>8} {done:>5} of {of}", file=sys.stderr, flush=True)
