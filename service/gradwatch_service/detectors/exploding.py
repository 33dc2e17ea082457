"""Exploding gradients: the global norm, the loss, the cosine and the learning rate as witnesses.

Each witness is judged against its own last 64 accepted values (median, robust spread), never
against a fixed number. One witness alone must be far out; two that agree, or several steps in a
row, need less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from gradwatch_service.detectors.excursions import (
    FEWEST,
    JUMP_STEPS,
    QUIET,
    ExplodingState,
    Witness,
    accept,
    follow_rate,
    learn_peaks,
    mean_sigmas,
    settle,
    sigmas,
)
from gradwatch_service.detectors.rules import (
    LASTING,
    LASTING_OVER,
    LOSS,
    NORM,
    OVER,
    OWN_LOSS,
    RISING,
    TOGETHER,
    agrees,
    both,
    innocent_values,
    is_innocent,
    scores_of,
    step_up_score,
)
from gradwatch_service.detectors.starting import START_STEPS, start_score
from gradwatch_service.detectors.sustained import LASTING_STEPS, LEAST_OVER

__all__ = ["JUMP_STEPS", "ExplodingState", "Spike", "Witness", "find_exploding", "is_raised"]

BATCH: Final = ("together", "norm", "loss", "loss lasting")  # what an unusual batch may do
BATCH_STEPS: Final = 5  # with evidence: what lasts longer is no batch
TOLD_AGAIN: Final = 1.3  # of the worst one that the run got over by itself
STAYS_NORM: Final = 2.0
TAME_LOSS: Final = 0.5  # of the run's scale of losses


@dataclass(frozen=True, slots=True)
class Spike:
    """What was found at a step. ``rule`` says which witnesses decided.

    ``score`` is 1 at the limit of the rule; ``opens`` tells a new trouble from one that goes on.
    ``known`` means that the run got over as much by itself before, or that loss and norm stay below
    what they were at the start. ``loss_before`` are the sigmas of the loss when it was found.
    """

    rule: str
    opens: bool
    score: float
    expected: float
    onset_step: int
    loss_before: float
    norm_sigmas: float
    loss_sigmas: float
    cosine: float
    usual_cosine: float
    same_direction: bool
    known: bool
    rate_ratio: float
    rate_step: int


def find_exploding(state: ExplodingState, x: Witness) -> Spike | None:
    """Take one finite step in; say whether the gradient explodes at it.

    The state moves on in place. Values of a step with evidence enter the windows only as far as
    their usual range reaches, so that a burst does not raise the limits for the steps after it.
    """
    follow_rate(state, x)
    state.seen += 1
    if len(state.norms) < FEWEST:
        start = _bad_start(state, x)
        accept(state, x, flagged=start is not None)
        return start
    norm, loss, cosine, own = sigmas(state, x)
    over = x.log_norm - state.norms.median
    state.recent.append([x.step, norm, loss, cosine, over, x.shape_spread, own])
    del state.recent[:-5]
    state.peak_age += 1
    up = step_up_score(state, x)
    spike = None if is_innocent(state, up) else _judge(state, x, up)
    if spike is None and state.seen <= START_STEPS:
        spike = _bad_start(state, x)
    if spike is None:
        state.quiet += 1
        if state.quiet == QUIET:
            _get_over(state)
        if norm >= RISING:
            newest = innocent_values(state, up)
            state.rising = [max(a, b) for a, b in zip(state.rising, newest, strict=True)]
        elif norm < 1 and any(state.rising):
            learn_peaks(state)
    else:
        state.quiet = 0
        state.flagged += 1
        state.rising = [0.0] * len(state.rising)
    accept(state, x, flagged=spike is not None or norm > 4)
    settle(state)
    return spike


def is_raised(state: ExplodingState, log_norm: float) -> bool:
    """Whether a norm is so far up, or up for the second time, that the shape of its growth matters."""
    if len(state.norms.values) < FEWEST:
        return False
    over = log_norm - state.norms.median
    if over < LEAST_OVER:
        return False
    return over >= LASTING_OVER or bool(state.recent and state.recent[-1][OVER] >= LEAST_OVER)


def _judge(state: ExplodingState, x: Witness, up: float) -> Spike | None:
    norm, loss = state.recent[-1][NORM], state.recent[-1][LOSS]
    scores = scores_of(state, x, up)
    rule = max(scores, key=lambda name: scores[name])
    score = scores[rule]
    opens = state.quiet >= QUIET
    if not opens and score < 1:
        # Hysteresis: what has begun goes on at half the limit.
        score, rule = max(norm / 3.0, both(norm, loss) / 2.0), "goes on"
    if score < 1:
        return None
    if opens:
        state.loss_before = mean_sigmas(state, LOSS, 3)
        state.harmless, state.explained = False, False
    same_direction = scores["direction"] >= 1 or (up >= 1 and agrees(state))
    jumped = state.jump_age <= JUMP_STEPS
    state.explained = state.explained or same_direction or jumped
    state.harmless = not state.explained and _is_harmless(state, x, scores)
    return Spike(
        rule=rule,
        opens=opens,
        score=score,
        expected=math.exp(state.norms.median),
        onset_step=_onset(state, x.step),
        loss_before=state.loss_before,
        norm_sigmas=norm,
        loss_sigmas=loss,
        cosine=x.cosine if math.isfinite(x.cosine) else state.cosine,
        usual_cosine=math.tanh(state.cosines.median) if len(state.cosines) else 0.0,
        same_direction=same_direction,
        known=state.harmless,
        rate_ratio=state.jump_ratio if jumped else 1.0,
        rate_step=state.jump_step,
    )


def _bad_start(state: ExplodingState, x: Witness) -> Spike | None:
    """What a run shows that explodes before it has a history."""
    score = start_score(state, x)
    if score < 1:
        return None
    opens = state.quiet >= QUIET
    state.quiet = 0
    state.flagged += 1
    return Spike(
        rule="start",
        opens=opens,
        score=score,
        expected=math.exp(state.norms.values[0]),
        onset_step=x.step,
        loss_before=0.0,
        norm_sigmas=math.nan,
        loss_sigmas=math.nan,
        cosine=state.cosine,
        usual_cosine=0.0,
        same_direction=False,
        known=False,
        rate_ratio=1.0,
        rate_step=-1,
    )


def _get_over(state: ExplodingState) -> None:
    """Note how bad it was: what the run gets over by itself is not worth the same warning again.

    What has another explanation, or lasted, was no batch that the run got over.
    """
    if not state.explained and state.flagged <= BATCH_STEPS:
        state.told = [max(a, b) for a, b in zip(state.told, state.worst, strict=True)]
    state.flagged = 0
    state.worst = [0.0] * len(state.worst)


def _is_harmless(state: ExplodingState, x: Witness, scores: dict[str, float]) -> bool:
    """Whether the run got over as much before, or loss and norm stay below those of its start.

    The latter is a batch that is hard for a model that has nearly learnt its task.
    """
    batch = max(scores.get(rule, 0.0) for rule in BATCH)
    others = max(score for rule, score in scores.items() if rule not in (*BATCH, "step up"))
    state.explained = others >= 1
    rose = state.recent[-1][OWN_LOSS] >= TOGETHER or state.harmless
    low = x.loss < TAME_LOSS * state.loss_scale and x.log_norm < state.first_level
    lasting = scores["step up"] >= 1 and mean_sigmas(state, OWN_LOSS, LASTING_STEPS) < LASTING
    if rose and low and others < 1 and not lasting and not _stays(state):
        return True
    now = (batch, scores["step up"])
    state.worst = [max(a, b) for a, b in zip(state.worst, now, strict=True)]
    pairs = zip(state.worst, state.told, strict=True)
    return others < 1 and all(a < 1 or a <= TOLD_AGAIN * b for a, b in pairs)


def _stays(state: ExplodingState) -> bool:
    """Whether norm and loss are far up for the third step in a row: no batch is that hard."""
    last = state.recent[-3:]
    return all(entry[LOSS] >= TOGETHER and entry[NORM] >= STAYS_NORM for entry in last)


def _onset(state: ExplodingState, step: int) -> int:
    onset = step
    for at, norm, loss, *_ in reversed(state.recent[:-1]):
        if norm < 2 and not loss >= 2:
            break
        onset = int(at)
    return onset
