"""Every gradient detector as one state machine over the steps of a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import Finding, RunContext
from gradwatch_service.detectors.budget import BudgetState, granted
from gradwatch_service.detectors.clipping import (
    ADAPTIVE,
    ClippingState,
    find_overclipping,
    find_underflow,
)
from gradwatch_service.detectors.excursions import fisher
from gradwatch_service.detectors.exploding import (
    JUMP_STEPS,
    ExplodingState,
    Witness,
    find_exploding,
    is_raised,
)
from gradwatch_service.detectors.findings import (
    exploding_finding,
    exploding_severity,
    oscillating_finding,
    vanishing_finding,
)
from gradwatch_service.detectors.nonfinite import NonfiniteRow, find_nonfinite
from gradwatch_service.detectors.oscillating import OscillatingState, find_oscillating
from gradwatch_service.detectors.signals import Signals, read_signals
from gradwatch_service.detectors.state_codec import dump_state, load_state, shallow
from gradwatch_service.detectors.vanishing import (
    VanishingState,
    find_vanishing,
    follow_calm,
    is_calm,
)
from gradwatch_service.detectors.weights import WeightState, follow_weights, weight_moves
from gradwatch_service.rows import StepRows

__all__ = ["Diagnosis", "DiagnosisState", "find_facts"]

STEPS_KEPT: Final = 64  # newest finite steps, to name the step where something began
STRETCH: Final = 32  # steps judged calm at once; the longer, the more a level might have risen
SCALE_SEARCH: Final = 12  # overflows in a row that a loss scaler needs at most to find its scale


@dataclass(slots=True)
class DiagnosisState:
    """What the detectors remember of a stream. Treated as immutable outside this module."""

    exploding: ExplodingState = field(default_factory=ExplodingState)
    vanishing: VanishingState = field(default_factory=VanishingState)
    oscillating: OscillatingState = field(default_factory=OscillatingState)
    clipping: ClippingState = field(default_factory=ClippingState)
    weights: WeightState = field(default_factory=WeightState)
    budget: BudgetState = field(default_factory=BudgetState)
    steps: list[int] = field(default_factory=list)
    bad_in_a_row: int = 0

    def copy(self) -> DiagnosisState:
        """Return a state of its own."""
        twin = shallow(self)
        twin.exploding = self.exploding.copy()
        twin.vanishing = self.vanishing.copy()
        twin.oscillating = self.oscillating.copy()
        twin.clipping = self.clipping.copy()
        twin.weights = self.weights.copy()
        twin.budget = self.budget.copy()
        twin.steps = self.steps.copy()
        return twin

    def step_ago(self, steps: int) -> int:
        """Number of the step at which something began that has lasted for so many finite steps."""
        return int(self.steps[-min(steps, len(self.steps))])


class Diagnosis:
    """Finds exploding, vanishing, oscillating and non-finite gradients, and the notices beside them.

    See :class:`~gradwatch_service.detectors.base.Analysis`.

    Args:
        exact: Never take the short way through calm rows. For tests: the result is the same.
    """

    name = "gradients"
    columns = (
        "norm",
        "norm_after",
        "nonfinite_count",
        "nan_count",
        "present",
        "cosine_previous",
        "weight_norm",
    )
    version = 6

    def __init__(self, *, exact: bool = False) -> None:
        self.exact = exact

    def start(self, context: RunContext) -> DiagnosisState:
        """State before the first step."""
        name = (context.optimizer_class or "").lower()
        adaptive = any(kind in name for kind in ADAPTIVE)
        return DiagnosisState(clipping=ClippingState(adaptive=adaptive))

    def advance(
        self, state: DiagnosisState, rows: StepRows
    ) -> tuple[DiagnosisState, list[Finding]]:
        """State after the rows, and what was found, in step order."""
        state = state.copy()
        signals = read_signals(rows)
        found: list[Finding] = []
        live = signals.present & ~signals.zero
        full: _Shape | None = None  # made when it is needed: mostly it is not
        shape: _Shape | None = None
        moves = weight_moves(state.weights, signals.weight_norms)
        largest = np.abs(moves).max(axis=1, initial=0.0).tolist()
        for i, step in enumerate(signals.steps):
            if i % STRETCH == 0:
                ahead = slice(i, i + STRETCH)
                calm = is_calm(state.vanishing, signals.tensor_logs[ahead], live[ahead])
                shape = None
                if not calm or self.exact:
                    shape = full = full or _Shape.of(rows)
            state.budget.seen += 1
            if signals.weight_norms.shape[1]:
                follow_weights(state.weights, step, moves[i], largest[i])
            if signals.bad[i] > 0:
                found += _nonfinite(state, signals, i)
            elif math.isfinite(signals.norm[i]):
                found += _finite(state, signals, i, shape)
        found += _underflow(state, signals, rows)
        return state, sorted(found, key=lambda finding: finding.step)

    def dump(self, state: DiagnosisState) -> bytes:
        """Write the state."""
        return dump_state(state, self.version)

    def load(self, data: bytes) -> DiagnosisState:
        """Read what :meth:`dump` wrote.

        Raises:
            UnknownStateVersion: Another version wrote it.
        """
        return load_state(DiagnosisState(), data, self.version)


def find_facts(rows: StepRows) -> list[Finding]:
    """Non-finite elements alone, which need no history to be judged."""
    signals, state = read_signals(rows), DiagnosisState()
    bad = [i for i in range(len(signals.steps)) if signals.bad[i] > 0]
    return [finding for i in bad for finding in _nonfinite(state, signals, i)]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the manifest says of T tensors."""

    numel: NDArray[np.int64]
    weights: NDArray[np.bool_]  # two or more dimensions

    @classmethod
    def of(cls, rows: StepRows) -> _Shape:
        tensors = rows.manifest.tensors
        return cls(
            np.array([tensor.numel for tensor in tensors], np.int64),
            np.array([len(tensor.shape) >= 2 for tensor in tensors], np.bool_),
        )


def _nonfinite(state: DiagnosisState, signals: Signals, i: int) -> list[Finding]:
    state.bad_in_a_row += 1
    counts = signals.nonfinite
    known = counts is not None and counts.shape[1] > 0 and counts[i].any()
    scaled = signals.scale[i] > 0
    row = NonfiniteRow(
        step=signals.steps[i],
        rank=signals.rank,
        counts=counts[i] if counts is not None and known else np.array(signals.bad[i : i + 1]),
        nans=signals.nans[i] if signals.nans is not None and known else None,
        skipped=bool(signals.skipped[i] > 0),
        scale_managed=scaled and state.bad_in_a_row <= SCALE_SEARCH,
        endless=scaled and state.bad_in_a_row > SCALE_SEARCH,
        after_exploding=state.exploding.flagged > 0 and state.exploding.quiet < 10,
        loss_finite=_loss_finite(signals, i),
    )
    finding = find_nonfinite(row, signals.names if known else ("gradient",))
    return [finding] if finding else []


def _loss_finite(signals: Signals, i: int) -> bool | None:
    if signals.loss_bad[i] > 0:
        return False
    return True if math.isfinite(signals.loss[i]) else None


def _finite(state: DiagnosisState, signals: Signals, i: int, shape: _Shape | None) -> list[Finding]:
    """Judge one finite step; ``shape`` is None in a calm stretch, where no tensor can vanish."""
    step = signals.steps[i]
    state.bad_in_a_row = 0
    state.steps.append(step)
    del state.steps[:-STEPS_KEPT]
    found = _judge_norm(state, signals, i) if signals.norm[i] > 0 else []
    if shape is None:
        follow_calm(state.vanishing, signals.tensor_logs[i])
    elif len(shape.numel):
        losses = find_vanishing(
            state.vanishing,
            signals.tensor_logs[i],
            zero=signals.zero[i],
            present=signals.present[i],
            numel=shape.numel,
            weights=shape.weights,
        )
        found += [
            vanishing_finding(
                signals, i, loss, onset_step=state.step_ago(loss.onset), weights=state.weights
            )
            for loss in losses
        ]
    if math.isfinite(signals.kept[i]):
        found += _overclipping(state, signals, i)
    return found


def _judge_norm(state: DiagnosisState, signals: Signals, i: int) -> list[Finding]:
    """Exploding and oscillating: what the norm, loss, cosine and learning rate say together."""
    log_norm = signals.log_norm[i]
    grew, spread = np.zeros(0), math.inf
    if is_raised(state.exploding, log_norm):  # nobody asks for it otherwise
        grew, spread = _growth(state, signals, i)
    witness = Witness(
        step=signals.steps[i],
        log_norm=log_norm,
        loss=signals.loss[i],
        cosine=signals.cosine[i],
        turn=fisher(signals.cosine[i]),
        rate=signals.rate[i],
        shape_spread=spread,
    )
    spike = find_exploding(state.exploding, witness)
    after_jump = state.exploding.jump_age <= JUMP_STEPS
    turning = find_oscillating(state.oscillating, witness.cosine, after_jump=after_jump)
    if spike is not None:
        if not len(grew):
            grew, spread = _growth(state, signals, i)
        wanted = exploding_severity(spike, signals.norm[i])
        return [
            exploding_finding(
                signals,
                i,
                spike,
                grew,
                shape_spread=spread,
                weights=state.weights,
                severity=granted(state.budget, wanted, opens=spike.opens),
            )
        ]
    if turning is not None and state.exploding.flagged == 0:
        onset = state.step_ago(turning.onset)
        return [oscillating_finding(signals, i, turning, onset_step=onset)]
    return []


def _growth(state: DiagnosisState, signals: Signals, i: int) -> tuple[NDArray[np.float64], float]:
    """[T] ln growth over each tensor's level, and how differently they grew (0: all alike)."""
    logs, live = signals.tensor_logs[i], signals.present[i] & ~signals.zero[i]
    levels = state.vanishing.levels
    if len(levels.level) < len(logs) or np.count_nonzero(live) < 1:
        return np.zeros(0), math.inf
    grew = np.where(live, levels.distance(logs), 0.0)
    if np.count_nonzero(live) < 2:
        return grew, math.inf
    middle = float(np.median(grew[live]))
    apart = 1.4826 * float(np.median(np.abs(grew[live] - middle)))
    return grew, apart / max(abs(middle), 1e-9)


def _overclipping(state: DiagnosisState, signals: Signals, i: int) -> list[Finding]:
    kept = find_overclipping(state.clipping, signals.kept[i])
    if kept is None:
        return []
    return [
        Finding(
            kind="overclipping",
            step=signals.steps[i],
            onset_step=state.step_ago(STEPS_KEPT),
            severity="info" if state.clipping.adaptive else "warning",
            rank=signals.rank,
            observed=kept,
            expected=1.0,
            score=0.1 / max(kept, 1e-9),
            cause="threshold_too_low",
        )
    ]


def _underflow(state: DiagnosisState, signals: Signals, rows: StepRows) -> list[Finding]:
    return [
        Finding(
            kind="underflow",
            step=underflow.step,
            onset_step=underflow.step,
            severity="warning",
            rank=signals.rank,
            tensors=tuple(signals.names[c] for c in underflow.columns),
            first_tensor=signals.names[underflow.columns[-1]],
            observed=underflow.share,
            expected=0.0,
            score=underflow.share / 0.5,
            cause="loss_scale",
        )
        for underflow in find_underflow(state.clipping, rows, rows.histograms)
    ]
