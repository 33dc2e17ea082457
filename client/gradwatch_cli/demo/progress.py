"""The progress of the demo: a bar in a terminal, a line for each tenth elsewhere."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gradwatch_cli.demo.training import Learner

__all__ = ["training_progress"]

# Reading a loss waits for the device, which is why the bar reads it only now and then.
REFRESH_STEPS = 5


@contextlib.contextmanager
def training_progress(steps: int) -> Iterator[Callable[[int, list[Learner]], None]]:
    """Show how far the training is, on standard error; yields what to call after each step."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step, learners: _line(step, steps, learners)
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[losses]}"), console=console) as bar:
        task = bar.add_task("training", total=steps, losses="")

        def show(step: int, learners: list[Learner]) -> None:
            if step % REFRESH_STEPS == 0 or step == steps - 1:
                bar.update(task, completed=step + 1, losses=_losses(learners))

        yield show


def _line(step: int, steps: int, learners: list[Learner]) -> None:
    if (step + 1) * 10 // steps > step * 10 // steps:
        print(f"step {step + 1:>5} of {steps}  {_losses(learners)}", file=sys.stderr, flush=True)


def _losses(learners: list[Learner]) -> str:
    words = []
    for learner in learners:
        loss = float(learner.losses[-1])
        words.append(f"loss {'clipped' if learner.clipped else 'unclipped'} {_short(loss)}")
    return "  ".join(words)


def _short(loss: float) -> str:
    return f"{loss:.2f}" if math.isfinite(loss) else "not finite"
