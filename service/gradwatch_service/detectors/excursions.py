"""What a run's norm, loss, cosine and learning rate usually do, and how far they go at times."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

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
    "follow_rate",
    "mean_sigmas",
    "remember_peak",
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
RULES: Final = 6


@dataclass(frozen=True, slots=True)
class Witness:
    """One finite step as the detector sees it; NaN means not measured."""

    step: int
    log_norm: float
    loss: float
    cosine: float
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
    recent: list[list[float]] = field(default_factory=list)  # step, 3 sigmas, ln over, shape
    peaks: list[float] = field(default_factory=lambda: [0.0] * RULES)  # largest innocent values
    rising: list[float] = field(default_factory=lambda: [0.0] * RULES)  # of this excursion
    told: list[float] = field(default_factory=lambda: [0.0] * RULES)  # worst scores it got over
    worst: list[float] = field(default_factory=lambda: [0.0] * RULES)  # scores of what is going on
    harmless: bool = False  # what is going on is known, or small beside the run's start
    seen: int = 0  # finite steps
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
        return replace(
            self,
            norms=self.norms.copy(),
            losses=self.losses.copy(),
            cosines=self.cosines.copy(),
            shapes=self.shapes.copy(),
            rates=self.rates.copy(),
            raw=self.raw.copy(),
            recent=self.recent.copy(),
        )


def sigmas(state: ExplodingState, x: Witness) -> tuple[float, float, float]:
    """Robust sigmas of norm, loss and cosine over their usual values; NaN where unknown."""
    wide = 1 + SMALL_SAMPLE / len(state.norms)
    norm = (x.log_norm - state.norms.median) / (max(SPREAD_FLOOR, state.norms.spread()) * wide)
    loss = cosine = math.nan
    if math.isfinite(x.loss) and len(state.losses) >= FEWEST:
        middle = state.losses.median
        floor = max(LOSS_FLOOR * abs(middle), LOSS_SCALE_FLOOR * state.loss_scale, 1e-12)
        loss = (x.loss - middle) / (max(floor, state.losses.spread()) * wide)
    if math.isfinite(x.cosine) and len(state.cosines) >= FEWEST:
        spread = max(COSINE_FLOOR, state.cosines.spread())
        cosine = (fisher(x.cosine) - state.cosines.median) / (spread * wide)
    return norm, loss, cosine


def fisher(cosine: float) -> float:
    """Fisher's z of a cosine: its spread does not shrink towards the ends."""
    return math.atanh(max(-0.999, min(0.999, cosine)))


def mean_sigmas(state: ExplodingState, column: int, steps: int) -> float:
    """Mean over the newest steps of a column of ``recent``; 0 where it was not measured."""
    known = [entry[column] for entry in state.recent[-steps:] if math.isfinite(entry[column])]
    return sum(known) / len(known) if known else 0.0


def remember_peak(state: ExplodingState, norm: float, values: list[float]) -> None:
    """Learn how far innocent excursions of this run go; each counts once it is over.

    Counting it earlier would raise the limit in front of a ramp, step by step.
    """
    state.peaks = [peak * PEAK_KEPT for peak in state.peaks]
    if norm >= 1:
        state.rising = [max(a, b) for a, b in zip(state.rising, values, strict=True)]
    elif any(state.rising):
        state.peaks = [max(a, b) for a, b in zip(state.peaks, state.rising, strict=True)]
        state.rising = [0.0] * RULES


def follow_rate(state: ExplodingState, x: Witness) -> None:
    """Remember a learning rate that jumped, while it stays up and shortly after; and one that fell."""
    state.jump_age += 1
    state.fall_age = min(NEVER, state.fall_age + 1)
    rates = state.rates
    if not (math.isfinite(x.rate) and x.rate > 0):
        return
    if len(rates) >= 4:
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
    state.rates = [*rates[1 - RATES_KEPT :], x.rate]


def accept(state: ExplodingState, x: Witness, *, flagged: bool) -> None:
    """Take a step into the windows; flagged ones only as far as the usual range reaches."""
    state.raw = [*state.raw[1 - SETTLED :], x.log_norm]
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
        if len(state.losses) >= FEWEST:
            middle = state.losses.median
            value = min(value, middle + 2 * max(LOSS_FLOOR * abs(middle), state.losses.spread()))
            state.loss_scale = max(state.loss_scale, abs(middle))
        state.losses.push(value)
    if math.isfinite(x.cosine):
        value = fisher(x.cosine)
        if len(state.cosines) >= FEWEST:
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
