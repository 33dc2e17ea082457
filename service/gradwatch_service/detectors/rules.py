"""The rules by which a step is an explosion, each with the least that it asks for.

A score of 1 is the limit of its rule. Limits lie above the run's own innocent excursions.
"""

from __future__ import annotations

import math
from typing import Final

from gradwatch_service.detectors.excursions import (
    AFTERMATH,
    JUMP_STEPS,
    SPREAD_FLOOR,
    WINDOW,
    ExplodingState,
    Witness,
    mean_sigmas,
    peaks_now,
)
from gradwatch_service.detectors.sustained import (
    BEFORE,
    LASTING_STEPS,
    LEAST_OVER,
    agreement,
    step_up,
)

__all__ = [
    "COSINE",
    "LASTING",
    "LASTING_OVER",
    "LOSS",
    "NORM",
    "OVER",
    "OWN_LOSS",
    "RISING",
    "TOGETHER",
    "agrees",
    "both",
    "innocent_values",
    "is_innocent",
    "scores_of",
    "step_up_score",
]

NORM, LOSS, COSINE, OVER, SHAPE, OWN_LOSS = 1, 2, 3, 4, 5, 6  # columns of ``ExplodingState.recent``

ALONE: Final = 8.5  # robust sigmas of ln norm that need no other witness
ALONE_MOST: Final = 12.0
ALONE_OVER: Final = math.log(3)
TOGETHER: Final = 4.0  # robust sigmas when norm and loss agree
BOTH_LEAST: Final = 2.5  # of the weaker of the two
BOTH_APART: Final = 4.0  # times the other that a witness counts for at most
MEAN_SHARE: Final = 0.8
HEADROOM: Final = 1.3  # above the run's own largest innocent value
RISING: Final = 1.5  # robust sigmas; no rule learns from less
AFTERMATH_FACTOR: Final = 1.3
LASTING: Final = 3.5
LASTING_OVER: Final = math.log(2.5)
LASTING_SHAPE: Final = 0.4  # how differently the tensors grew, as a share of the growth
SCALED: Final = 3.0  # robust sigmas of ln norm, twice in a row, while the loss is as usual
SCALED_THRICE: Final = 2.0  # the same three times
SCALED_SHAPE: Final = 0.25
UNUSUALLY_ALIKE: Final = 0.6  # of the run's usual share: in some jobs all tensors always agree
SHAPES_KNOWN: Final = 8
SHAPE_EARLY: Final = 0.5  # on that share while neither is known
LOSS_QUIET: Final = 1.5
LOSS_FALLING: Final = -1.2  # mean of four: norms that rise while the loss falls are learning
LOSS_FAR: Final = 8.0  # robust sigmas of a loss that needs little of the norm
LOSS_FAR_NORM: Final = 2.5
LOSS_FAR_RISE: Final = 0.5  # of the run's scale of losses
LOSS_LASTING: Final = 5.5  # mean of three
LOSS_LASTING_LEAST: Final = 2.0  # each
LOSS_LASTING_NORM: Final = 2.2  # mean of three
WEAKER: Final = 0.65  # of its own limit, where the other makes up for it
SAME_DIRECTION: Final = 4.5  # robust sigmas of the cosine, three steps in a row
REPEATED: Final = 6.0  # the same where neither norm nor loss rises
EVEN: Final = 1.2  # of ln norm; where most gradients are next to nothing, cosines tell nothing
SAME: Final = 0.99  # a cosine that only the same batch gives
AGREEING: Final = 1.25  # on a step up that a cosine far above its past speaks for
STEP_UP: Final = 1.15
STEP_UP_FIRST: Final = 100  # levels move by themselves before that
STEP_UP_LEAST: Final = 1.5  # robust sigmas of the newest ln norm


def is_innocent(state: ExplodingState, up: float) -> bool:
    """Whether no rule can reach its limit: each asks for at least this much of norm or cosine.

    Only a jump of the learning rate lets the loss alone decide.
    """
    recent = state.recent
    norm = recent[-1][NORM]
    if norm >= min(SCALED_THRICE, 2.0) or up > 0 or state.jump_age <= JUMP_STEPS:
        return False
    if len(recent) < 3:
        return True
    one, two, three = recent[-3:]
    if one[COSINE] >= 1 and two[COSINE] >= 1 and three[COSINE] >= 1:
        return False
    if not three[LOSS] >= LOSS_LASTING_LEAST:
        return True
    return one[NORM] + two[NORM] + three[NORM] < 3 * WEAKER * LOSS_LASTING_NORM


def scores_of(state: ExplodingState, x: Witness, up: float) -> dict[str, float]:
    """How far each rule is beyond its limit, which is 1."""
    _, norm, loss, _, over, _, _ = state.recent[-1]
    # Instability comes in clusters, and the first of a cluster has been told.
    calm = 1.0 if state.quiet >= AFTERMATH else AFTERMATH_FACTOR
    peaks = [HEADROOM * peak for peak in peaks_now(state)]
    scores = {
        "direction": _same_direction(state, x),
        "together": both(norm, loss) / (calm * max(TOGETHER, peaks[1])),
        "step up": up / (calm * max(STEP_UP, peaks[3])),
        "scaled": _scaled(state) / calm,
        "loss lasting": _loss_lasting(state) / (calm * max(1.0, peaks[4])),
    }
    if over >= ALONE_OVER:
        scores["norm"] = norm / (calm * min(ALONE_MOST, max(ALONE, peaks[0])))
    last = state.recent[-3:]
    if len(last) == 3 and min(entry[OVER] for entry in last) >= LASTING_OVER:
        alike = sorted(entry[SHAPE] for entry in last)[1] <= LASTING_SHAPE
        scores["lasting"] = alike * _lasting(state) / (calm * max(LASTING, peaks[2]))
    if loss >= LOSS_FAR and x.loss - state.losses.median >= LOSS_FAR_RISE * state.loss_scale:
        scores["loss"] = min(loss / LOSS_FAR, norm / LOSS_FAR_NORM) / calm
    if state.jump_age <= JUMP_STEPS:
        scores["rate"] = max(norm / 2.5, loss / 4.0 if math.isfinite(loss) else 0.0)
    return scores


def innocent_values(state: ExplodingState, up: float) -> list[float]:
    """Values of the rules that learn from innocent excursions."""
    norm, loss = state.recent[-1][NORM], state.recent[-1][LOSS]
    return [norm, both(norm, loss), _lasting(state), up, _loss_lasting(state)]


def both(norm: float, loss: float) -> float:
    """Sigmas that norm and loss show together: of the weaker, or nearly of their geometric mean."""
    if not math.isfinite(loss):
        return 0.0
    least = min(norm, loss)
    if least < BOTH_LEAST:
        return least
    mean = math.sqrt(min(norm, BOTH_APART * loss) * min(loss, BOTH_APART * norm))
    return max(least, MEAN_SHARE * mean)


def _lasting(state: ExplodingState) -> float:
    """Least sigmas of ln norm of the last three steps."""
    return min((entry[NORM] for entry in state.recent[-3:]), default=0.0)


def _loss_lasting(state: ExplodingState) -> float:
    """Score of a loss that is up for three steps, none of them counted for too much, and the norm too."""
    losses = [min(entry[LOSS], 2 * LOSS_LASTING) for entry in state.recent[-3:]]
    if len(losses) < 3 or not min(losses) >= LOSS_LASTING_LEAST:
        return 0.0
    norm = mean_sigmas(state, NORM, 3) / LOSS_LASTING_NORM
    loss = sum(losses) / 3 / LOSS_LASTING
    return math.sqrt(norm * loss) if min(norm, loss) >= WEAKER else min(norm, loss, WEAKER)


def step_up_score(state: ExplodingState, x: Witness) -> float:
    """Score of norms that have stepped up and stay up; 0 where loss or schedule explain it."""
    if state.recent[-1][OVER] < LEAST_OVER:
        return 0.0
    last = state.recent[-LASTING_STEPS:]
    if len(last) < LASTING_STEPS or min(entry[OVER] for entry in last) < LEAST_OVER:
        return 0.0
    norm, over = last[-1][NORM], last[-1][OVER]
    if norm < STEP_UP_LEAST or state.seen < STEP_UP_FIRST or state.fall_age < WINDOW:
        return 0.0
    if mean_sigmas(state, LOSS, LASTING_STEPS) < LOSS_FALLING:
        return 0.0
    shapes = sorted(entry[SHAPE] for entry in last)
    score = step_up(
        state.norms.values[: 1 - LASTING_STEPS],
        [*state.raw[1 - LASTING_STEPS - BEFORE :], x.log_norm],
        sigma=max(SPREAD_FLOOR, over / norm),
        apart=0.5 * (shapes[1] + shapes[2]),
        usually=_usual_shape(state),
    )
    return score * AGREEING if agrees(state) else score


def _usual_shape(state: ExplodingState) -> float:
    """How differently the tensors of this run usually grow; infinite while that is not known."""
    return state.shapes.median if len(state.shapes) >= SHAPES_KNOWN else math.inf


def _scaled(state: ExplodingState) -> float:
    """Score of steps in a row at which every tensor grew alike while the loss is as usual."""
    limit = min(SCALED_SHAPE, UNUSUALLY_ALIKE * _usual_shape(state))
    if state.seen < STEP_UP_FIRST and len(state.shapes) < SHAPES_KNOWN:
        limit *= SHAPE_EARLY
    least: list[float] = []
    for entry in reversed(state.recent[-3:]):
        if entry[OVER] < LASTING_OVER or entry[SHAPE] > limit or entry[OWN_LOSS] > LOSS_QUIET:
            break
        least.append(min([entry[NORM], *least[-1:]]))
    twice = least[1] / SCALED if len(least) >= 2 else 0.0
    return max(twice, least[2] / SCALED_THRICE) if len(least) == 3 else twice


def agrees(state: ExplodingState) -> bool:
    """Whether one of the newest cosines, which may be sampled, is far above its past."""
    return any(entry[COSINE] >= SAME_DIRECTION for entry in state.recent[-LASTING_STEPS:])


def _same_direction(state: ExplodingState, x: Witness) -> float:
    """Score of gradients that suddenly agree with one another, most of all while norm or loss rises."""
    last = state.recent[-3:]
    if len(last) < 3 or not all(math.isfinite(entry[COSINE]) for entry in last):
        return 0.0
    rise = x.cosine - math.tanh(state.cosines.median)
    least = min(entry[COSINE] for entry in last)
    grows = max(*(entry[NORM] for entry in last), max(entry[LOSS] for entry in last) / 3)
    if state.norms.spread() > EVEN:
        return 0.0
    if rise >= 0.25 and grows >= 1.0:
        four = [entry[COSINE] for entry in state.recent[-LASTING_STEPS:]]
        return max(least, agreement(state.cosines.values, four)) / SAME_DIRECTION
    if rise < 0.5:
        return 0.0
    return least / (REPEATED if x.cosine < SAME else SAME_DIRECTION)
