"""Exploding gradients: the global norm, the loss, the cosine and the learning rate as witnesses.

Each witness is judged against its own last 64 accepted values (median, robust spread), never
against a fixed number. One witness alone must be far out; two that agree need less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

from gradwatch_service.detectors.window import Window

__all__ = ["ExplodingState", "Spike", "Witness", "find_exploding", "is_high"]

WINDOW: Final = 64
FEWEST: Final = 12  # steps before anything is judged
SMALL_SAMPLE: Final = 8.0  # limits are 1 + 8/n times wider while the history is short
SPREAD_FLOOR: Final = 0.08  # of ln norm: gradients that are more even than that do not exist
LOSS_FLOOR: Final = 0.02  # of the loss itself
COSINE_FLOOR: Final = 0.05
ALONE: Final = 8.5  # robust sigmas of ln norm that need no other witness
ALONE_MOST: Final = 12.0
TOGETHER: Final = 4.0  # robust sigmas when norm and loss agree
HEADROOM: Final = 1.3  # above the run's own largest innocent value
PEAK_KEPT: Final = 0.5 ** (1 / 2000)  # that value is half forgotten after 2000 steps
QUIET: Final = 10
AFTERMATH: Final = 100  # steps after the last evidence
AFTERMATH_FACTOR: Final = 1.3
LASTING: Final = 3.5
LASTING_OVER: Final = math.log(2.5)
SAME_DIRECTION: Final = 4.5  # robust sigmas of the cosine, three steps in a row
REPEATED: Final = 6.0  # the same where neither norm nor loss rises
SHAPE: Final = 0.4
JUMP: Final = 2.0  # learning rate against the highest of its last 16
JUMP_STEPS: Final = 64
RATES_KEPT: Final = 16
SETTLED: Final = 32  # steps after which a new steady level is the usual one


@dataclass(frozen=True, slots=True)
class Witness:
    """One finite step as the detector sees it; NaN means not measured."""

    step: int
    log_norm: float
    loss: float
    cosine: float
    rate: float
    shape_spread: float


@dataclass(frozen=True, slots=True)
class Spike:
    """What was found at a step. ``rule`` says which witnesses decided.

    ``score`` is 1 at the limit of the rule; ``opens`` tells a new trouble from one that goes on.
    """

    rule: str
    opens: bool
    score: float
    expected: float
    onset_step: int
    norm_sigmas: float
    loss_sigmas: float
    cosine: float
    usual_cosine: float
    same_direction: bool
    rate_ratio: float
    rate_step: int


@dataclass(slots=True)
class ExplodingState:
    """What the detector remembers. Mutable; :meth:`copy` first."""

    norms: Window = field(default_factory=lambda: Window(WINDOW))
    losses: Window = field(default_factory=lambda: Window(WINDOW))
    cosines: Window = field(default_factory=lambda: Window(WINDOW))
    rates: list[float] = field(default_factory=list)  # the last 16
    raw: list[float] = field(default_factory=list)  # ln of the last 32 norms as they were
    recent: list[list[float]] = field(default_factory=list)  # step, norm, loss, cosine sigmas
    peaks: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # norm, both, lasting
    rising: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of this excursion
    flagged: int = 0  # steps with evidence since the last quiet spell
    quiet: int = AFTERMATH  # steps since the last evidence
    jump_age: int = JUMP_STEPS + 1
    jump_ratio: float = 1.0
    jump_step: int = -1
    jump_base: float = 0.0

    def copy(self) -> ExplodingState:
        """Return a state of its own."""
        return replace(
            self,
            norms=self.norms.copy(),
            losses=self.losses.copy(),
            cosines=self.cosines.copy(),
            rates=self.rates.copy(),
            raw=self.raw.copy(),
            recent=self.recent.copy(),
        )


def find_exploding(state: ExplodingState, x: Witness) -> Spike | None:
    """Take one finite step in; say whether the gradient explodes at it.

    The state moves on in place. Values of a step with evidence enter the windows only as far as
    their usual range reaches, so that a burst does not raise the limits for the steps after it.
    """
    _follow_rate(state, x)
    if len(state.norms) < FEWEST:
        _accept(state, x, flagged=False)
        return None
    norm, loss, cosine = _sigmas(state, x)
    over = x.log_norm - state.norms.median
    state.recent = [*state.recent[-4:], [x.step, norm, loss, cosine, over, x.shape_spread]]
    spike = _judge(state, x, norm, loss)
    if spike is None:
        state.quiet += 1
        if state.quiet >= QUIET:
            state.flagged = 0
        _remember_peak(state, norm, loss)
    else:
        state.quiet = 0
        state.flagged += 1
        state.rising = [0.0, 0.0, 0.0]
    _accept(state, x, flagged=spike is not None or norm > 4)
    _settle(state)
    return spike


def is_high(state: ExplodingState, log_norm: float) -> bool:
    """Whether a norm is so far up that the shape of its growth matters."""
    return len(state.norms) >= FEWEST and log_norm - state.norms.median >= LASTING_OVER


def _sigmas(state: ExplodingState, x: Witness) -> tuple[float, float, float]:
    wide = 1 + SMALL_SAMPLE / len(state.norms)
    norm = (x.log_norm - state.norms.median) / (max(SPREAD_FLOOR, state.norms.spread()) * wide)
    loss = cosine = math.nan
    if math.isfinite(x.loss) and len(state.losses) >= FEWEST:
        middle = state.losses.median
        floor = max(LOSS_FLOOR * abs(middle), 1e-12)
        loss = (x.loss - middle) / (max(floor, state.losses.spread()) * wide)
    if math.isfinite(x.cosine) and len(state.cosines) >= FEWEST:
        spread = max(COSINE_FLOOR, state.cosines.spread())
        cosine = (_fisher(x.cosine) - state.cosines.median) / (spread * wide)
    return norm, loss, cosine


def _remember_peak(state: ExplodingState, norm: float, loss: float) -> None:
    """Learn how far innocent excursions of this run go; each counts once it is over.

    Counting it earlier would raise the limit in front of a ramp, step by step.
    """
    a, b, c = state.peaks
    if norm < 1:
        x, y, z = state.rising
        state.peaks = [max(a * PEAK_KEPT, x), max(b * PEAK_KEPT, y), max(c * PEAK_KEPT, z)]
        if x or y or z:
            state.rising = [0.0, 0.0, 0.0]
        return
    state.peaks = [a * PEAK_KEPT, b * PEAK_KEPT, c * PEAK_KEPT]
    x, y, z = state.rising
    both = min(norm, loss) if math.isfinite(loss) else 0.0
    state.rising = [max(x, norm), max(y, both), max(z, _lasting(state))]


def _lasting(state: ExplodingState) -> float:
    """Least sigmas of ln norm of the last three steps."""
    return min((entry[1] for entry in state.recent[-3:]), default=0.0)


def _judge(state: ExplodingState, x: Witness, norm: float, loss: float) -> Spike | None:
    over = x.log_norm - state.norms.median
    if _is_innocent(state, norm, cosine=state.recent[-1][3]):
        return None
    both = min(norm, loss) if math.isfinite(loss) else 0.0
    # Instability comes in clusters, and the first of a cluster has been told.
    calm = 1.0 if state.quiet >= AFTERMATH else AFTERMATH_FACTOR
    alone_limit = calm * min(ALONE_MOST, max(ALONE, HEADROOM * state.peaks[0]))
    both_limit = calm * max(TOGETHER, HEADROOM * state.peaks[1])
    scores = {"together": both / both_limit}
    if over >= math.log(3):
        scores["norm"] = norm / alone_limit
    scores["direction"] = _same_direction(state, x)
    if min(entry[4] for entry in state.recent[-3:]) >= LASTING_OVER:
        shapes = sorted(entry[5] for entry in state.recent[-3:])
        if len(shapes) == 3 and shapes[1] <= SHAPE:
            scores["scaled"] = _lasting(state) / (calm * max(LASTING, HEADROOM * state.peaks[2]))
    if state.jump_age <= JUMP_STEPS:
        rise = loss / 4.0 if math.isfinite(loss) else 0.0
        scores["rate"] = max(norm / 2.5, rise)
    rule = max(scores, key=lambda name: scores[name])
    score = scores[rule]
    opens = state.quiet >= QUIET
    if not opens and score < 1:
        # Hysteresis: what has begun goes on at half the limit.
        score, rule = max(norm / 3.0, both / 2.0), "goes on"
    if score < 1:
        return None
    usual = math.tanh(state.cosines.median) if len(state.cosines) else math.nan
    return Spike(
        rule=rule,
        opens=opens,
        score=score,
        expected=math.exp(state.norms.median),
        onset_step=_onset(state, x.step),
        norm_sigmas=norm,
        loss_sigmas=loss,
        cosine=x.cosine,
        usual_cosine=usual,
        same_direction=scores["direction"] >= 1,
        rate_ratio=state.jump_ratio if state.jump_age <= JUMP_STEPS else 1.0,
        rate_step=state.jump_step,
    )


def _fisher(cosine: float) -> float:
    """Fisher's z of a cosine: its spread does not shrink towards the ends."""
    return math.atanh(max(-0.999, min(0.999, cosine)))


def _is_innocent(state: ExplodingState, norm: float, *, cosine: float) -> bool:
    """Whether no rule can reach its limit: each asks for at least this much of norm or cosine.

    Only a jump of the learning rate lets the loss alone decide.
    """
    if state.jump_age <= JUMP_STEPS:
        return False
    least = LASTING if state.quiet >= QUIET else 2.0
    return norm < least and not cosine >= SAME_DIRECTION


def _same_direction(state: ExplodingState, x: Witness) -> float:
    """Score of gradients that suddenly agree with one another while norm or loss rises."""
    last = state.recent[-3:]
    if len(last) < 3 or not math.isfinite(x.cosine):
        return 0.0
    rise = x.cosine - math.tanh(state.cosines.median) if len(state.cosines) else 0.0
    least = min(entry[3] for entry in last)
    grows = max(*(entry[1] for entry in last), max(entry[2] for entry in last) / 3)
    if rise >= 0.25 and grows >= 1.0:
        return least / SAME_DIRECTION
    return least / REPEATED if rise >= 0.5 else 0.0


def _onset(state: ExplodingState, step: int) -> int:
    onset = step
    for at, norm, loss, *_ in reversed(state.recent[:-1]):
        if norm < 2 and not loss >= 2:
            break
        onset = int(at)
    return onset


def _follow_rate(state: ExplodingState, x: Witness) -> None:
    """Remember a learning rate that jumped, while it stays up and shortly after."""
    state.jump_age += 1
    if not (math.isfinite(x.rate) and x.rate > 0):
        return
    if len(state.rates) >= 4:
        # A jump may take a few steps, but a warm-up must not look like one.
        base = max(state.rates[:-3] if len(state.rates) == RATES_KEPT else state.rates)
        if x.rate > JUMP * base > 0 and x.rate > JUMP * state.jump_base:
            state.jump_age, state.jump_ratio = 0, x.rate / base
            state.jump_step, state.jump_base = x.step, x.rate
    if state.jump_base and x.rate < 0.7 * state.jump_base:
        state.jump_base = 0.0
        state.jump_age = max(state.jump_age, JUMP_STEPS - 2 * QUIET)
    state.rates = [*state.rates[1 - RATES_KEPT :], x.rate]


def _accept(state: ExplodingState, x: Witness, *, flagged: bool) -> None:
    state.raw = [*state.raw[1 - SETTLED :], x.log_norm]
    ready = len(state.norms) >= FEWEST
    value = x.log_norm
    if flagged and ready:
        value = min(value, state.norms.median + 0.25)
    state.norms.push(value)
    if math.isfinite(x.loss):
        value = x.loss
        if len(state.losses) >= FEWEST:
            spread = max(LOSS_FLOOR * abs(state.losses.median), state.losses.spread())
            value = min(value, state.losses.median + 2 * spread)
        state.losses.push(value)
    if math.isfinite(x.cosine):
        value = _fisher(x.cosine)
        if len(state.cosines) >= FEWEST:
            middle = state.cosines.median
            reach = 3 * max(COSINE_FLOOR, state.cosines.spread())
            value = min(max(value, middle - reach), middle + reach)
        state.cosines.push(value)


def _settle(state: ExplodingState) -> None:
    """Take a level that has lasted and is steady for the usual one: a genuine shift."""
    if state.flagged < SETTLED:
        return
    newest = Window(WINDOW, state.raw)
    if newest.spread() < 2 * max(SPREAD_FLOOR, state.norms.spread()):
        state.norms = newest
        state.flagged = 0
