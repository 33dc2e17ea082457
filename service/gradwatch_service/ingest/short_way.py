"""Steps as scripts post them, turned into rows without tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradwatch_service.rows import StepRows
from gradwatch_service.settings import Settings
from gradwatch_wire import Manifest, Problem, WireError

__all__ = ["MANIFEST", "OPTIMIZER", "rows_of_steps"]

OPTIMIZER = "steps"
# Its own optimizer name: a script may post beside a job that reports, and neither is the other's.
MANIFEST = Manifest(tensors=(), optimizer=OPTIMIZER)
MAX_PROBLEMS = 20
NOT_NEGATIVE = frozenset({"global_norm", "global_norm_after", "max_abs", "nonfinite_count"})


def rows_of_steps(content: Any, settings: Settings) -> list[StepRows]:
    """One row per object, in step order.

    Raises:
        WireError: No object or list of objects, a value that is no finite number or null, the same
            step twice with other numbers, too many; every wrong field is named.
    """
    given = content if isinstance(content, list) else [content]
    if not given:
        raise WireError(Problem("body", "an empty list given; at least one step is expected"))
    if len(given) > settings.max_steps:
        raise WireError(
            Problem("body", f"{len(given)} steps given; allowed: at most {settings.max_steps}")
        )
    problems: list[Problem] = []
    found: dict[int, StepRows] = {}
    for index, item in enumerate(given):
        at = f"[{index}]." if isinstance(content, list) else ""
        rows = _row(item, at, settings, problems)
        if rows is None:
            continue
        step = int(rows.steps[0])
        if step in found:
            problems.append(Problem(f"{at}step", f"{step} comes twice in this list"))
        found[step] = rows
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise WireError(*problems[:MAX_PROBLEMS])
    return [found[step] for step in sorted(found)]


def _row(item: Any, at: str, settings: Settings, problems: list[Problem]) -> StepRows | None:
    if not isinstance(item, dict):
        problems.append(
            Problem(at.rstrip(".") or "body", f"{type(item).__name__} given; an object is expected")
        )
        return None
    values = dict(item)
    step = values.pop("step", None)
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**53:
        problems.append(
            Problem(f"{at}step", f"{step!r:.60} given; required: a whole number, 0 or above")
        )
        return None
    if len(values) > settings.max_scalars:
        problems.append(
            Problem(
                at.rstrip(".") or "body",
                f"{len(values)} numbers given; allowed: at most {settings.max_scalars}",
            )
        )
        return None
    scalars = {name: _number(f"{at}{name}", name, v, problems) for name, v in values.items()}
    time = scalars.pop("time", math.nan)
    return StepRows(
        attempt=0,
        optimizer=OPTIMIZER,
        rank=0,
        steps=np.array([step], dtype=np.int64),
        time=np.array([time]),
        scalars={name: np.array([value]) for name, value in sorted(scalars.items())},
        tensors={},
        manifest=MANIFEST,
    )


def _number(at: str, name: str, value: Any, problems: list[Problem]) -> float:
    if not 1 <= len(name) <= 128 or not name.isprintable():
        problems.append(Problem(at[:80], "a name has 1 to 128 printable characters"))
        return math.nan
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        problems.append(Problem(at, f"{value!r:.60} given; allowed: a number, or null"))
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        problems.append(
            Problem(
                at,
                f"{number!r} given; allowed: a finite number, or null for a step that has none "
                '(and "nonfinite_count": 1 to say that it was not finite)',
            )
        )
    elif number < 0 and name in NOT_NEGATIVE:
        problems.append(Problem(at, f"{number!r} given; allowed: 0 or above"))
    return number
