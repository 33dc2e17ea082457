"""The threshold rule for the global norm: a low quantile that falls at once and rises slowly.

A limit of the form centre + k spread follows an explosion upward and so protects nothing; a limit
at or below the middle of the recent norms, falling at once and rising slowly, does not. See
docs/recommendation.md for the figures.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import Finding, RunContext, UnknownStateVersion
from gradwatch_service.measures import global_norm, nonfinite_count, scalar
from gradwatch_service.recommenders.window import log_spread, quantile, sorted_windows
from gradwatch_service.rows import StepRows

__all__ = ["PREFERENCES", "WINDOW", "NormRecommender", "NormState", "advance_norms"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Steps = NDArray[np.int64]

WINDOW = 64  # norms the rule looks at
HISTORY = 512  # norms kept for the embedded backtest
FLOOD_WINDOW = 20  # steps in which non-finite ones are counted
HOLD_STEPS = 20  # after a change of the learning rate the threshold may only fall for this long
RATE_LOOKBACK = 5  # steps within which a change of the learning rate counts as one change
MIN_NORMS = 3

# One column per preference. `guard` is not a quantile but the alarm level, which rises faster.
PREFERENCES = {"tight": 0, "balanced": 1, "guard": 2}
QUANTILES = (0.10, 0.25)
RISE = np.log([1.001, 1.001, 1.01])


@dataclass(frozen=True, slots=True)
class NormState:
    """All that the rule remembers; about 5 KB. Norms are those of finite steps, oldest first.

    Attributes:
        seen: Steps seen, non-finite ones included.
        accepted: Norms that entered the window, ever.
        clock: Accepted norms after which the threshold was allowed to rise.
        last_step: Newest step seen, or None.
        last_accepted_step: Newest step whose norm entered the window, or None.
        last_change: Index (as ``seen``) of the newest change of the learning rate.
        norms: Last 512 accepted norms.
        finite: Whether each of the last 20 steps was finite.
        rates: Learning rates of the last 5 steps, NaN where not sent.
        floors: [3] per preference, min over steps j of ln target_j - rise clock_j: the threshold
            in force is ``exp(floor + rise clock)``. Infinite before there is one.
        exceeded: [3, <= 64] whether each of the last norms lay above the threshold in force before.
        zeros: Finite steps whose gradient was zero in every element, ever.
    """

    seen: int
    accepted: int
    clock: int
    last_step: int | None
    last_accepted_step: int | None
    last_change: int
    norms: Floats
    finite: Flags
    rates: Floats
    floors: Floats
    exceeded: Flags
    zeros: int

    def threshold(self, preference: str) -> float | None:
        """The threshold now in force, or None before the third accepted norm."""
        column = PREFERENCES[preference]
        level = float(self.floors[column] + RISE[column] * self.clock)
        return math.exp(min(level, 700.0)) if math.isfinite(level) else None


def initial_state() -> NormState:
    """The state before the first step."""
    return NormState(
        seen=0,
        accepted=0,
        clock=0,
        last_step=None,
        last_accepted_step=None,
        last_change=-HOLD_STEPS - 1,
        norms=np.empty(0),
        finite=np.empty(0, np.bool_),
        rates=np.empty(0),
        floors=np.full(3, np.inf),
        exceeded=np.empty((3, 0), np.bool_),
        zeros=0,
    )


def advance_norms(
    state: NormState, steps: Steps, norms: Floats, finite: Flags, rates: Floats
) -> NormState:
    """The state after n more steps; the same, bit for bit, however the steps are split.

    One bad value must not poison what follows: a norm enters the window only if its step was
    finite. A norm of exactly 0 has no logarithm and says nothing about a scale: it is counted only.

    Args:
        state: The state before.
        steps: [n] step numbers.
        norms: [n] global norms.
        finite: [n] whether every gradient element of the step was finite.
        rates: [n] learning rates, NaN where not sent.
    """
    if not len(steps):
        return state
    finite = finite & np.isfinite(norms)
    accepted = finite & (norms > 0)
    index = state.seen + np.arange(len(steps))
    changes = _newest_change(state, index, rates)
    values = norms[accepted]
    held = (index - changes < HOLD_STEPS)[accepted]
    floors, clock, exceeded = _follow(state, np.log(values), held)
    taken = steps[accepted]
    return NormState(
        seen=state.seen + len(steps),
        accepted=state.accepted + len(values),
        clock=clock,
        last_step=int(steps[-1]),
        last_accepted_step=int(taken[-1]) if len(taken) else state.last_accepted_step,
        last_change=int(changes[-1]),
        norms=np.concatenate([state.norms, values])[-HISTORY:],
        finite=np.concatenate([state.finite, finite])[-FLOOD_WINDOW:],
        rates=np.concatenate([state.rates, rates])[-RATE_LOOKBACK:],
        floors=floors,
        exceeded=exceeded,
        zeros=state.zeros + int(np.count_nonzero(finite & (norms == 0))),
    )


def _newest_change(state: NormState, index: Steps, rates: Floats) -> Steps:
    """[n] index of the newest step at which the learning rate had changed by more than 2x."""
    known = np.concatenate([state.rates, rates])
    fill = np.full(RATE_LOOKBACK + len(rates) - len(known), np.nan)
    known = np.concatenate([fill, known])
    usable = known > 0
    high = np.where(usable, known, -np.inf)
    low = np.where(usable, known, np.inf)
    view = np.lib.stride_tricks.sliding_window_view
    width = RATE_LOOKBACK + 1
    changed = view(high, width).max(axis=1) > 2 * view(low, width).min(axis=1)
    newest = np.where(changed, index, state.last_change)
    return np.maximum.accumulate(newest)


def _follow(state: NormState, logs: Floats, held: Flags) -> tuple[Floats, int, Flags]:
    """Apply "fall at once, rise slowly" to the targets of the new norms.

    c_i = min over j <= i of (target_j + rise (clock_i - clock_j)) is that law in closed form. The
    clock counts from the run's start, so that the floating-point result has no seams.
    """
    if not len(logs):
        return state.floors, state.clock, state.exceeded
    targets = _targets(np.log(state.norms[-(WINDOW - 1) :]), logs)
    clocks = state.clock + np.cumsum(~held)
    rises = RISE[:, None] * clocks
    floors = np.minimum.accumulate(np.minimum(targets - rises, state.floors[:, None]), axis=1)
    before = np.concatenate([[state.clock], clocks[:-1]])
    in_force = np.concatenate([state.floors[:, None], floors[:, :-1]], axis=1)
    in_force = in_force + RISE[:, None] * before
    predicted = np.isfinite(in_force[0])
    exceeded = (logs > in_force)[:, predicted]
    return (
        floors[:, -1],
        int(clocks[-1]),
        np.concatenate([state.exceeded, exceeded], axis=1)[:, -WINDOW:],
    )


def _targets(past: Floats, logs: Floats) -> Floats:
    """[3, n] where the threshold of each preference would stand without the law, as ln norm.

    A spike cannot lift a quantile below the median, so the quantiles need no winsorising.
    """
    ordered, counts = sorted_windows(past, logs, WINDOW)
    rows = [quantile(ordered, counts, q) for q in QUANTILES]
    rows.append(alarm_level(ordered, counts))
    targets = np.stack(rows)
    targets[:, counts < MIN_NORMS] = np.inf
    return targets


def alarm_level(ordered: Floats, counts: Steps) -> Floats:
    """[n] ln of the norm that counts as a spike: median + max(5 s k, ln 3), with k = 1 + 30/n.

    A small window widens the limit through k, up to a thousand times the median.
    """
    centre = quantile(ordered, counts, 0.5)
    spread = log_spread(ordered, counts, centre)
    return centre + np.clip(5 * spread * (1 + 30 / counts), math.log(3), math.log(1000))


class NormRecommender:
    """The rule as an :class:`~gradwatch_service.detectors.base.Analysis` over reported steps."""

    version = 1

    def start(self, context: RunContext) -> NormState:  # noqa: ARG002 - the rule starts alike for all
        """State before the first step."""
        return initial_state()

    def advance(self, state: NormState, rows: StepRows) -> tuple[NormState, list[Finding]]:
        """State after the rows. A recommender finds nothing: the list is empty."""
        measured = global_norm(rows)
        known = ~np.isnan(measured)
        finite = nonfinite_count(rows) == 0
        rates = scalar(rows, "learning_rate")
        state = advance_norms(
            state, rows.steps[known], measured[known], finite[known], rates[known]
        )
        return state, []

    def dump(self, state: NormState) -> bytes:
        """Write the state as JSON; :meth:`load` restores it bit for bit."""
        fields: dict[str, Any] = {"version": self.version}
        for name in NormState.__slots__:
            value = getattr(state, name)
            fields[name] = _pack(value) if isinstance(value, np.ndarray) else value
        return json.dumps(fields).encode()

    def load(self, data: bytes) -> NormState:
        """Read what :meth:`dump` wrote.

        Raises:
            UnknownStateVersion: Another version wrote it.
        """
        fields: dict[str, Any] = json.loads(data)
        version = fields.pop("version", None)
        if version != self.version:
            raise UnknownStateVersion(f"norm state version {version!r}; this is {self.version}")
        return _restored({k: _unpack(v) if isinstance(v, dict) else v for k, v in fields.items()})


def _restored(fields: Mapping[str, Any]) -> NormState:
    return NormState(**fields)


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _unpack(packed: dict[str, Any]) -> NDArray[Any]:
    raw = np.frombuffer(base64.b64decode(packed["data"]), packed["dtype"])
    return raw.reshape(packed["shape"]).copy()
