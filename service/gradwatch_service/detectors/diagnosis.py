"""Every gradient detector as one state machine over the steps of a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gradwatch_service.detectors.base import Finding, RunContext, UnknownStateVersion
from gradwatch_service.detectors.nonfinite import NonfiniteRow, find_nonfinite
from gradwatch_service.detectors.window import Window
from gradwatch_service.measures import global_norm, nonfinite_count
from gradwatch_service.rows import StepRows
from gradwatch_service.state_bytes import pack, unpack

__all__ = ["Diagnosis", "DiagnosisState"]

WINDOW: Final = 64


@dataclass(slots=True)
class DiagnosisState:
    """What the detectors remember of a stream. Treated as immutable outside this module."""

    norms: Window  # ln of the global norm at the last accepted steps
    recent: list[bool]  # whether the last steps stood out, oldest first, at most 5

    def copy(self) -> DiagnosisState:
        """Return a state of its own."""
        return DiagnosisState(self.norms.copy(), self.recent.copy())


class Diagnosis:
    """Finds exploding and non-finite gradients. See :class:`~.base.Analysis`."""

    version = 1

    def start(self, context: RunContext) -> DiagnosisState:
        """State before the first step."""
        del context
        return DiagnosisState(Window(WINDOW), [])

    def advance(
        self, state: DiagnosisState, rows: StepRows
    ) -> tuple[DiagnosisState, list[Finding]]:
        """State after the rows, and what was found, in step order."""
        state = state.copy()
        names = [tensor.name for tensor in rows.manifest.tensors]
        norms, bad = global_norm(rows), nonfinite_count(rows)
        found: list[Finding] = []
        for i, step in enumerate(rows.steps.tolist()):
            if bad[i] > 0:
                counts = rows.tensors.get("nonfinite_count")
                row = NonfiniteRow(
                    step=step,
                    rank=rows.rank,
                    counts=counts[i] if counts is not None else bad[i : i + 1],
                )
                finding = find_nonfinite(row, names or ["gradient"])
            else:
                finding = _exploding(state, step, rows.rank, float(norms[i]))
            if finding is not None:
                found.append(finding)
        return state, found

    def dump(self, state: DiagnosisState) -> bytes:
        """Write the state."""
        return pack(
            {"version": self.version, "norms": np.array(state.norms.values), "recent": state.recent}
        )

    def load(self, data: bytes) -> DiagnosisState:
        """Read what :meth:`dump` wrote.

        Raises:
            UnknownStateVersion: Another version wrote it.
        """
        values: dict[str, Any] = unpack(data)
        if values.get("version") != self.version:
            raise UnknownStateVersion(f"diagnosis state {values.get('version')!r}")
        return DiagnosisState(Window(WINDOW, values["norms"].tolist()), values["recent"])


def _exploding(state: DiagnosisState, step: int, rank: int, norm: float) -> Finding | None:
    if not norm > 0:
        return None
    value, window = math.log(norm), state.norms
    if len(window) < 12:
        window.push(value)
        return None
    middle = window.median
    over = value - middle
    spread = max(0.08, window.spread())
    small = 1 + 30 / len(window)
    state.recent = [*state.recent[-4:], over > max(3.5 * spread * small, math.log(2))]
    limit = max(5 * spread * small, math.log(3))
    window.push(min(value, middle + 0.25) if state.recent[-1] else value)
    if over <= limit and sum(state.recent) < 3:
        return None
    return Finding(
        kind="exploding",
        step=step,
        onset_step=step,
        severity="critical",
        rank=rank,
        observed=norm,
        expected=math.exp(middle),
        score=over / limit,
    )
