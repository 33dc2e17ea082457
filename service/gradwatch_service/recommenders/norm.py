"""The threshold rule for the global norm: a level of the recent norms, lowered by spikes.

A limit of the form centre + k spread follows an explosion upward and so protects nothing; a limit
that falls at once and rises slowly does not. See docs/recommendation.md for the figures.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import Finding, RunContext, UnknownStateVersion
from gradwatch_service.measures import global_norm, nonfinite_count, scalar
from gradwatch_service.recommenders.restraint import LIMIT, Restraint, restrained, signs
from gradwatch_service.recommenders.window import log_spread, quantile, sorted_windows
from gradwatch_service.rows import StepRows

__all__ = [
    "PREFERENCES",
    "WINDOW",
    "NormRecommender",
    "NormState",
    "advance_norms",
    "in_force",
    "initial_state",
    "usual_level",
]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Steps = NDArray[np.int64]

WINDOW = 64  # norms the rule looks at
HISTORY = 512  # norms kept for the embedded backtest
FLOOD_WINDOW = 20  # steps in which non-finite ones are counted
HOLD_STEPS = 20  # after a change of the learning rate the threshold may only fall for this long
RATE_LOOKBACK = 5  # steps within which a change of the learning rate counts as one change
MIN_NORMS = 3

# One column per preference. `tight` is a quantile, `guard` the alarm level, which rises faster, and
# `balanced` a multiple of the median that spikes lower: see restraint.py.
PREFERENCES = {"tight": 0, "balanced": 1, "guard": 2}
TIGHT = 0.10
RISE = np.log([1.001, 1.001, 1.01])  # per tick of the column's clock


@dataclass(frozen=True, slots=True)
class NormState:
    """All that the rule remembers; about 5 KB. Norms are those of finite steps, oldest first.

    Attributes:
        seen: Steps seen, non-finite ones included.
        accepted: Norms that entered the window, ever.
        clocks: [3] per preference, ticks by which the threshold was allowed to rise.
        restraint: What spikes have done to ``balanced``.
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
    clocks: Steps
    restraint: Restraint
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
        if self.accepted < MIN_NORMS:
            return None
        column = PREFERENCES[preference]
        level = float(self.floors[column] + RISE[column] * self.clocks[column])
        return math.exp(min(level, 700.0)) if math.isfinite(level) else None


def initial_state() -> NormState:
    """The state before the first step."""
    return NormState(
        seen=0,
        accepted=0,
        clocks=np.zeros(3, np.int64),
        restraint=Restraint(),
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
    after = _follow(state, np.log(values), held)
    taken = steps[accepted]
    return NormState(
        seen=state.seen + len(steps),
        accepted=state.accepted + len(values),
        clocks=after.clocks,
        restraint=after.restraint,
        last_step=int(steps[-1]),
        last_accepted_step=int(taken[-1]) if len(taken) else state.last_accepted_step,
        last_change=int(changes[-1]),
        norms=np.concatenate([state.norms, values])[-HISTORY:],
        finite=np.concatenate([state.finite, finite])[-FLOOD_WINDOW:],
        rates=np.concatenate([state.rates, rates])[-RATE_LOOKBACK:],
        floors=after.floors,
        exceeded=after.exceeded,
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
    # sliding_window_view, without what its checks cost at every block of a few steps.
    shape = len(rates), RATE_LOOKBACK + 1
    highs, lows = (np.lib.stride_tricks.as_strided(x, shape, x.strides * 2) for x in (high, low))
    changed = highs.max(axis=1) > 2 * lows.min(axis=1)
    newest = np.where(changed, index, state.last_change)
    return np.maximum.accumulate(newest)


@dataclass(frozen=True, slots=True)
class _Followed:
    """The parts of the state that the norms move, and the ln thresholds in force before each."""

    floors: Floats
    clocks: Steps
    restraint: Restraint
    exceeded: Flags
    levels: Floats


def _follow(state: NormState, logs: Floats, held: Flags) -> _Followed:
    """Apply "fall at once, rise slowly" to the targets of the new norms.

    c_i = min over j <= i of (target_j + rise (clock_i - clock_j)) is that law in closed form. The
    clocks count from the run's start, so that the floating-point result has no seams.
    """
    if not len(logs):
        nothing = np.empty((3, 0))
        return _Followed(state.floors, state.clocks, state.restraint, state.exceeded, nothing)
    past = np.log(state.norms[-WINDOW:])
    # One window more than new norms, where there is a past: a spike is one beside earlier norms.
    ordered, counts = sorted_windows(past[:-1], np.concatenate([past[-1:], logs]), WINDOW)
    medians = quantile(ordered, counts, 0.5)
    spreads = log_spread(ordered, counts, medians)
    struck, steady = signs(past, logs, medians, spreads)
    lowered, ticks, restraint = restrained(state.restraint, struck, steady, held)
    new = slice(-len(logs), None)
    clocks = state.clocks[:, None] + np.cumsum(np.stack([~held, ticks, ~held]), axis=1)
    rises = RISE[:, None] * clocks
    # A spike cannot lift a quantile below the median, so the quantiles need no winsorising.
    tight = quantile(ordered[new], counts[new], TIGHT)
    alarm = medians[new] + _alarm_width(spreads[new], counts[new])
    outer = np.where(counts[new] < MIN_NORMS, np.inf, np.stack([tight, alarm])) - rises[[0, 2]]
    outer = np.minimum.accumulate(np.minimum(outer, state.floors[[0, 2], None]), axis=1)
    least = np.minimum(tight, outer[0] + rises[0])
    usual = usual_level(medians[new], least, lowered) - rises[1]
    usual = np.minimum.accumulate(np.minimum(usual, state.floors[1]))
    floors = np.stack([outer[0], usual, outer[1]])
    before = np.concatenate([state.clocks[:, None], clocks[:, :-1]], axis=1)
    levels = np.concatenate([state.floors[:, None], floors[:, :-1]], axis=1)
    levels = levels + RISE[:, None] * before
    exceeded = (logs > levels)[:, np.isfinite(levels[0])]
    return _Followed(
        floors=floors[:, -1],
        clocks=clocks[:, -1],
        restraint=restraint,
        exceeded=np.concatenate([state.exceeded, exceeded], axis=1)[:, -WINDOW:],
        levels=levels,
    )


def in_force(norms: Floats, finite: Flags, rates: Floats) -> Floats:
    """[3, n] the threshold in force before each step of a run, per preference; NaN before the first.

    That of ``balanced`` begins with the first norm, although too little is known to recommend it.

    Args:
        norms: [n] global norms from the run's first step on.
        finite: [n] whether every gradient element of the step was finite.
        rates: [n] learning rates, NaN where not sent.
    """
    accepted = finite & np.isfinite(norms) & (norms > 0)
    state, index = initial_state(), np.arange(len(norms))
    held = (index - _newest_change(state, index, rates) < HOLD_STEPS)[accepted]
    followed = _follow(state, np.log(norms[accepted]), held)
    after = followed.floors[:, None] + (RISE * followed.clocks)[:, None]
    # A step that was not accepted moves nothing: it meets what the next accepted one meets.
    levels = np.concatenate([followed.levels, after], axis=1)[:, np.cumsum(accepted) - accepted]
    return np.where(np.isfinite(levels), np.exp(np.minimum(levels, 700.0)), np.nan)


def usual_level(medians: Floats, tight: Floats, lowered: Floats | float) -> Floats:
    """[n] ln of where ``balanced`` aims: 2.5 medians, as much lower as spikes say, never below ``tight``.

    It aims from the first norm on: three steps without a limit can cost a run that explodes.

    Args:
        medians: [n] medians of ln norm.
        tight: [n] ln of the threshold of ``tight``.
        lowered: [n] ln by which spikes have lowered the limit.
    """
    return np.maximum(tight, medians + LIMIT - lowered)


def alarm_level(ordered: Floats, counts: Steps) -> Floats:
    """[n] ln of the norm that counts as a spike: median + max(5 s k, ln 3), with k = 1 + 30/n.

    A small window widens the limit through k, up to a thousand times the median.
    """
    centre = quantile(ordered, counts, 0.5)
    return centre + _alarm_width(log_spread(ordered, counts, centre), counts)


def _alarm_width(spreads: Floats, counts: Steps) -> Floats:
    return np.clip(5 * spreads * (1 + 30 / counts), math.log(3), math.log(1000))


class NormRecommender:
    """The rule as an :class:`~gradwatch_service.detectors.base.Analysis` over reported steps."""

    version = 5

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
            if isinstance(value, Restraint):
                value = dataclasses.astuple(value)
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


def _restored(fields: dict[str, Any]) -> NormState:
    return NormState(**fields | {"restraint": Restraint(*fields["restraint"])})


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _unpack(packed: dict[str, Any]) -> NDArray[Any]:
    raw = np.frombuffer(base64.b64decode(packed["data"]), packed["dtype"])
    return raw.reshape(packed["shape"]).copy()
