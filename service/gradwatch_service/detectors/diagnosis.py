"""Every gradient detector as one state machine over the steps of a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import Finding, RunContext
from gradwatch_service.detectors.exploding import ExplodingState, Spike, Witness, find_exploding
from gradwatch_service.detectors.nonfinite import NonfiniteRow, find_nonfinite
from gradwatch_service.detectors.signals import Signals, read_signals
from gradwatch_service.detectors.state_codec import dump_state, load_state
from gradwatch_service.detectors.vanishing import Loss, VanishingState, find_vanishing
from gradwatch_service.rows import StepRows

__all__ = ["Diagnosis", "DiagnosisState"]


@dataclass(slots=True)
class DiagnosisState:
    """What the detectors remember of a stream. Treated as immutable outside this module."""

    exploding: ExplodingState = field(default_factory=ExplodingState)
    vanishing: VanishingState = field(default_factory=VanishingState)
    last_scale: float = 0.0

    def copy(self) -> DiagnosisState:
        """Return a state of its own."""
        return DiagnosisState(self.exploding.copy(), self.vanishing.copy(), self.last_scale)


class Diagnosis:
    """Finds exploding, vanishing, oscillating and non-finite gradients. See :class:`~.base.Analysis`."""

    version = 2

    def start(self, context: RunContext) -> DiagnosisState:
        """State before the first step."""
        del context
        return DiagnosisState()

    def advance(
        self, state: DiagnosisState, rows: StepRows
    ) -> tuple[DiagnosisState, list[Finding]]:
        """State after the rows, and what was found, in step order."""
        state = state.copy()
        signals = read_signals(rows)
        tensors = rows.manifest.tensors
        numel = np.array([tensor.numel for tensor in tensors], np.int64)
        weights = np.array([len(tensor.shape) >= 2 for tensor in tensors], np.bool_)
        found: list[Finding] = []
        for i in range(len(signals.steps)):
            if signals.bad[i] > 0:
                found += _nonfinite(signals, i)
            else:
                found += _finite(state, signals, i, numel, weights)
        return state, found

    def dump(self, state: DiagnosisState) -> bytes:
        """Write the state."""
        return dump_state(state, self.version)

    def load(self, data: bytes) -> DiagnosisState:
        """Read what :meth:`dump` wrote.

        Raises:
            UnknownStateVersion: Another version wrote it.
        """
        return load_state(DiagnosisState(), data, self.version)


def _nonfinite(signals: Signals, i: int) -> list[Finding]:
    counts = signals.nonfinite
    row = NonfiniteRow(
        step=signals.steps[i],
        rank=signals.rank,
        counts=counts[i] if counts is not None and counts.shape[1] else signals.bad[i : i + 1],
        nans=None if signals.nans is None else signals.nans[i],
        skipped=bool(signals.skipped[i] > 0),
        scale_managed=bool(signals.scale[i] > 0),
    )
    finding = find_nonfinite(row, signals.names)
    return [finding] if finding else []


def _finite(
    state: DiagnosisState,
    signals: Signals,
    i: int,
    numel: NDArray[np.int64],
    weights: NDArray[np.bool_],
) -> list[Finding]:
    found: list[Finding] = []
    if not math.isfinite(signals.norm[i]):
        return found
    logs = signals.tensor_logs[i]
    if signals.norm[i] > 0:
        witness = Witness(
            step=signals.steps[i],
            log_norm=float(signals.log_norm[i]),
            loss=float(signals.loss[i]),
            cosine=float(signals.cosine[i]),
            rate=float(signals.rate[i]),
            shape_spread=_shape_spread(state, signals, i),
        )
        spike = find_exploding(state.exploding, witness)
        if spike is not None:
            found.append(_exploding(signals, i, spike))
    if len(logs):
        losses = find_vanishing(
            state.vanishing,
            logs,
            zero=signals.zero[i],
            present=signals.present[i],
            numel=numel,
            weights=weights,
        )
        found += [_vanishing(signals, i, loss) for loss in losses]
    return found


def _shape_spread(state: DiagnosisState, signals: Signals, i: int) -> float:
    """How differently the tensors grew, as a share of how much they grew: 0 when all alike."""
    logs, live = signals.tensor_logs[i], signals.present[i] & ~signals.zero[i]
    levels = state.vanishing.levels
    if len(levels.level) < len(logs) or live.sum() < 2:
        return math.inf
    grew = levels.distance(logs)[live]
    middle = float(np.median(grew))
    return 1.4826 * float(np.median(np.abs(grew - middle))) / max(abs(middle), 1e-9)


def _exploding(signals: Signals, i: int, spike: Spike) -> Finding:
    return Finding(
        kind="exploding",
        step=signals.steps[i],
        onset_step=spike.onset_step,
        severity="warning",
        rank=signals.rank,
        observed=float(signals.norm[i]),
        expected=spike.expected,
        score=spike.score,
        cause="learning_rate_change" if spike.rate_ratio > 1 else spike.rule,
    )


def _vanishing(signals: Signals, i: int, loss: Loss) -> Finding:
    names = tuple(signals.names[c] for c in loss.columns)
    return Finding(
        kind="vanishing",
        step=signals.steps[i],
        onset_step=signals.steps[max(0, i - 0)],
        severity="warning",
        rank=signals.rank,
        tensors=names,
        first_tensor=names[-1],
        observed=loss.observed,
        expected=loss.expected,
        score=1.0,
        cause={"zero": "dead_layer", "low": "unknown", "depth": "initialisation"}[loss.rule],
    )
