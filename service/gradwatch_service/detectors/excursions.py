"""What a run's norm, loss, cosine and learning rate usually do, and how far they go at times."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gradwatch_service.detectors.state_codec import shallow
from gradwatch_service.detectors.window import Window

__all__ = [
    "AFTERMATH",
    "FEWEST",
    "JUMP_STEPS",
    "QUIET",
    "WINDOW",
    "ExplodingState",
    "Witness",
    "accept",
    "fisher",
    "follow_rate",
    "learn_peaks",
    "mean_sigmas",
    "peaks_now",
    "settle",
    "sigmas",
]

WINDOW: Final = 64
FEWEST: Final = 12  # steps before anything is judged
FIRST: Final = 3  # steps that show what knowing nothing costs
SMALL_SAMPLE: Final = 8.0  # limits are 1 + 8/n times wider while the history is short
SPREAD_FLOOR: Final = 0.08  # of ln norm: gradients that are more even than that do not exist
LOSS_FLOOR: Final = 0.02  # of the loss itself
LOSS_SCALE_FLOOR: Final = 0.01  # of the run's scale: where the loss is nearly zero, little matters
COSINE_FLOOR: Final = 0.05
PEAK_KEPT: Final = 0.5 ** (
    1 / 2000
)  # the largest innocent value is half forgotten after 2000 steps
QUIET: Final = 10
AFTERMATH: Final = 100  # steps after the last evidence
JUMP: Final = 2.0  # learning rate against the highest of its last 16
JUMP_STEPS: Final = 64
RATES_KEPT: Final = 16
RATE_FELL: Final = 0.75  # of the highest of the last 4: a new stage of the schedule
NEVER: Final = 1 << 20
SETTLED: Final = 32  # steps after which a new steady level is the usual one
RULES: Final = 5


class Witness(NamedTuple):
    """One finite step as the detector sees it; NaN means not measured."""

    step: int
    log_norm: float
    loss: float
    cosine: float
    turn: float  # the cosine's Fisher z
    rate: float
    shape_spread: float


@dataclass(slots=True)
class ExplodingState:
    """What the detector remembers. Mutable; :meth:`copy` first."""

    norms: Window = field(default_factory=lambda: Window(WINDOW))
    losses: Window = field(default_factory=lambda: Window(WINDOW))
    cosines: Window = field(default_factory=lambda: Window(WINDOW))
    shapes: Window = field(default_factory=lambda: Window(32))  # of growth, where it was looked at
    rates: list[float] = field(default_factory=list)  # the last 16
    raw: list[float] = field(default_factory=list)  # ln of the last 32 norms as they were
    recent: list[list[float]] = field(default_factory=list)  # step, sigmas, ln over, shape
    peaks: list[float] = field(default_factory=lambda: [0.0] * RULES)  # largest innocent values
    peak_age: int = 0  # steps since they were taken
    rising: list[float] = field(default_factory=lambda: [0.0] * RULES)  # of this excursion
    told: list[float] = field(
        default_factory=lambda: [0.0] * 2
    )  # worst it got over: batch, step up
    worst: list[float] = field(default_factory=lambda: [0.0] * 2)  # of what is going on
    explained: bool = False  # what is going on has a cause of its own
    harmless: bool = False  # what is going on is known, or small beside the run's start
    seen: int = 0  # finite steps
    cosine: float = 0.0  # the newest one: they may be sampled
    first_level: float = -1e9  # largest ln norm of the first steps
    loss_scale: float = 0.0  # largest usual loss of the run, its first steps included
    loss_before: float = 0.0  # sigmas of the loss when what is going on was found
    flagged: int = 0  # steps with evidence since the last quiet spell
    quiet: int = AFTERMATH  # steps since the last evidence
    jump_age: int = JUMP_STEPS + 1
    jump_ratio: float = 1.0
    jump_step: int = -1
    jump_base: float = 0.0
    fall_age: int = NEVER  # steps since the learning rate fell

    def copy(self) -> ExplodingState:
        """Return a state of its own."""
        twin = shallow(self)
        twin.norms = self.norms.copy()
        twin.losses = self.losses.copy()
        twin.cosines = self.cosines.copy()
        twin.shapes = self.shapes.copy()
        twin.rates = self.rates.copy()
        twin.raw = self.raw.copy()
        twin.recent = self.recent.copy()
        return twin


def sigmas(state: ExplodingState, x: Witness) -> tuple[float, float, float, float]:
    """Robust sigmas of norm, loss and cosine over their usual values; NaN where unknown.

    The last is the loss again, however small it is beside the run's scale.
    """
    norms, losses, cosines = state.norms, state.losses, state.cosines
    wide = 1 + SMALL_SAMPLE / len(norms.values)
    norm = (x.log_norm - norms.median) / (max(SPREAD_FLOOR, norms.spread()) * wide)
    loss = own = cosine = math.nan
    if math.isfinite(x.loss) and len(losses.values) >= FEWEST:
        middle = losses.median
        spread = max(LOSS_FLOOR * abs(middle), losses.spread(), 1e-12)
        own = (x.loss - middle) / (spread * wide)
        loss = own * min(1.0, spread / max(1e-12, LOSS_SCALE_FLOOR * state.loss_scale))
    if math.isfinite(x.turn) and len(cosines.values) >= FEWEST:
        spread = max(COSINE_FLOOR, cosines.spread())
        cosine = (x.turn - cosines.median) / (spread * wide)
    return norm, loss, cosine, own


def fisher(cosine: float) -> float:
    """Fisher's z of a cosine: its spread does not shrink towards the ends. NaN stays NaN."""
    if math.isnan(cosine):
        return cosine
    return math.atanh(max(-0.999, min(0.999, cosine)))


def mean_sigmas(state: ExplodingState, column: int, steps: int) -> float:
    """Mean over the newest steps of a column of ``recent``; 0 where it was not measured."""
    known = [entry[column] for entry in state.recent[-steps:] if math.isfinite(entry[column])]
    return sum(known) / len(known) if known else 0.0


def peaks_now(state: ExplodingState) -> list[float]:
    """Largest innocent values of every rule, faded by their age."""
    kept = PEAK_KEPT**state.peak_age
    return [peak * kept for peak in state.peaks]


def learn_peaks(state: ExplodingState) -> None:
    """Learn how far an innocent excursion of this run went, once it is over.

    Counting it earlier would raise the limit in front of a ramp, step by step.
    """
    state.peaks = [max(a, b) for a, b in zip(peaks_now(state), state.rising, strict=True)]
    state.peak_age = 0
    state.rising = [0.0] * RULES


def follow_rate(state: ExplodingState, x: Witness) -> None:
    """Remember a learning rate that jumped, while it stays up and shortly after; and one that fell."""
    state.jump_age += 1
    state.fall_age = min(NEVER, state.fall_age + 1)
    rates = state.rates
    if not (math.isfinite(x.rate) and x.rate > 0):
        return
    if len(rates) >= 4 and x.rate > JUMP * rates[0]:
        # A jump may take a few steps, but a warm-up must not look like one.
        base = max(rates[:-3] if len(rates) == RATES_KEPT else rates)
        if x.rate > JUMP * base > 0 and x.rate > JUMP * state.jump_base:
            state.jump_age, state.jump_ratio = 0, x.rate / base
            state.jump_step, state.jump_base = x.step, x.rate
    if rates and x.rate < RATE_FELL * max(rates[-4:]):
        state.fall_age = 0
    if state.jump_base and x.rate < 0.7 * state.jump_base:
        state.jump_base = 0.0
        state.jump_age = max(state.jump_age, JUMP_STEPS - QUIET)
    rates.append(x.rate)
    del rates[:-RATES_KEPT]


def accept(state: ExplodingState, x: Witness, *, flagged: bool) -> None:
    """Take a step into the windows; flagged ones only as far as the usual range reaches."""
    state.raw.append(x.log_norm)
    del state.raw[:-SETTLED]
    if state.seen <= FIRST:
        state.first_level = max(state.first_level, x.log_norm)
        if math.isfinite(x.loss):
            state.loss_scale = max(state.loss_scale, abs(x.loss))
    value = x.log_norm
    if flagged:
        value = min(value, state.norms.median + 0.25)
    state.norms.push(value)
    if math.isfinite(x.shape_spread) and not flagged:
        state.shapes.push(x.shape_spread)
    if math.isfinite(x.loss):
        value = x.loss
        if len(state.losses.values) >= FEWEST:
            middle = state.losses.median
            if value > middle:
                reach = 2 * max(LOSS_FLOOR * abs(middle), state.losses.spread())
                value = min(value, middle + reach)
            state.loss_scale = max(state.loss_scale, abs(middle))
        state.losses.push(value)
    if math.isfinite(x.turn):
        state.cosine, value = x.cosine, x.turn
        if len(state.cosines.values) >= FEWEST:
            middle = state.cosines.median
            reach = 3 * max(COSINE_FLOOR, state.cosines.spread())
            value = min(max(value, middle - reach), middle + reach)
        state.cosines.push(value)


def settle(state: ExplodingState) -> None:
    """Take a level that has lasted and is steady for the usual one: a genuine shift."""
    if state.flagged < SETTLED:
        return
    newest = Window(WINDOW, state.raw)
    if newest.spread() < 2 * max(SPREAD_FLOOR, state.norms.spread()):
        state.norms = newest
        state.flagged = 0
