"""Recommendations for numbers that are sent along: the same rules as for a stored run, nothing kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.problems import invalid
from gradwatch_service.recommenders.advice import advice
from gradwatch_service.recommenders.answer import answer_norm
from gradwatch_service.recommenders.base import Asked, Preference
from gradwatch_service.recommenders.elementwise import MagnitudeHistory, answer_value
from gradwatch_service.recommenders.magnitudes import OCTAVES, aligned
from gradwatch_service.recommenders.norm import FLOOD_WINDOW, advance_norms, initial_state
from gradwatch_service.recommenders.ratio import answer_ratio
from gradwatch_service.recommenders.tensors import TENSOR_STEPS, answer_tensors

__all__ = ["Sent", "recommend_for"]

Floats = NDArray[np.float64]

LARGEST = float(np.finfo(np.float32).max)  # what a stored norm can be
MOST_STEPS = 100_000
MOST_TENSORS = 20_000
MOST_NORMS = 1_000_000
MOST_HISTOGRAMS = 4096

Step = Annotated[float, Field(ge=0, le=LARGEST)] | None
Steps = Annotated[list[Step], Field(max_length=MOST_STEPS)]


class Magnitudes(BaseModel):
    """Histograms of |element|, one per step and all tensors together, oldest first.

    Bin b counts elements with 2^(lowest_exponent + b/B) <= |g| < 2^(lowest_exponent + (b+1)/B), for B
    bins per octave; the first and the last also take what lies beyond. Leave out steps that were not
    finite.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    counts: list[list[Annotated[int, Field(ge=0, le=2**52)]]] = Field(max_length=MOST_HISTOGRAMS)
    bins_per_octave: Literal[1, 2, 4, 8] = 4
    lowest_exponent: int = Field(-48, ge=-1000, le=900)
    sampled: float = Field(1.0, gt=0, le=1, description="Share of the elements looked at.")
    max_abs: list[Annotated[float, Field(ge=0, le=LARGEST)]] | None = Field(
        None, description="Largest element of each step, known exactly; sharpens the answer."
    )


class Sent(BaseModel):
    """Measurements of a job that this service does not store, oldest first.

    ``policy`` says which field they are in: ``norms`` as a list for ``norm``, ``norms`` by tensor name
    for ``per_tensor``, ``ratios`` for ``agc``, ``histograms`` for ``value``.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    policy: Literal["norm", "value", "per_tensor", "agc"] = "norm"
    norms: Steps | Annotated[dict[str, Steps], Field(max_length=MOST_TENSORS)] | None = Field(
        None,
        description="Gradient norms: a list for policy=norm, lists by tensor name for per_tensor; null is "
        "a step that was not finite (for a tensor: or had no gradient).",
    )
    ratios: Steps | None = Field(
        None, description="For agc: the largest |gradient| / |weight| of each step."
    )
    histograms: Magnitudes | None = Field(None, description="For value.")
    learning_rates: list[Annotated[float, Field(ge=0)] | None] | None = Field(
        None, description="One per step; a change by more than 2x holds the threshold for 20 steps."
    )
    optimizer_class: str | None = Field(None, max_length=128, description="For the advice.")
    removed_energy: float = Field(0.01, gt=0, lt=1)
    preference: Preference = "balanced"
    default: float | None = None
    min: float | None = None
    max: float | None = None


def recommend_for(sent: Sent, asked: Asked) -> dict[str, Any]:
    """The answer of ``POST /recommend``.

    Raises:
        ServiceError: 422, the numbers are missing, of the wrong kind or of unequal length.
    """
    context = RunContext("", optimizer_class=sent.optimizer_class)
    if sent.policy == "per_tensor":
        given = _tensors(sent, asked)
    elif sent.policy == "value":
        given = answer_value(_history(sent), asked, sent.removed_energy, context)
    else:
        given = _stream(sent, asked, context)
    return given | {"run": None}


def _stream(sent: Sent, asked: Asked, context: RunContext) -> dict[str, Any]:
    """One number per step: ``norm`` and ``agc``."""
    field = "norms" if sent.policy == "norm" else "ratios"
    values = _only(sent, field)
    if not isinstance(values, list):
        raise invalid(
            field, f"policy={sent.policy} takes a list, one number per step, oldest first."
        )
    rates = _rates(sent, len(values))
    numbers, steps = _as_stored(values), np.arange(len(values))
    if sent.policy == "agc":
        return answer_ratio(
            steps, numbers, np.isfinite(numbers), asked, context=context, rates=rates
        )
    state = advance_norms(initial_state(), steps, numbers, np.isfinite(numbers), rates)
    return answer_norm(state, asked, context=context)


def _rates(sent: Sent, steps: int) -> Floats:
    rates = sent.learning_rates
    if rates is None:
        return np.full(steps, np.nan)
    if len(rates) != steps:
        raise invalid(
            "learning_rates", f"{len(rates)} learning rates for {steps} steps; give one per step."
        )
    return np.array(rates, np.float64)


def _tensors(sent: Sent, asked: Asked) -> dict[str, Any]:
    norms = _only(sent, "norms")
    if not isinstance(norms, dict):
        raise invalid(
            "norms", 'policy=per_tensor takes lists by tensor name, {"name": [0.7, ...]}.'
        )
    lengths = sorted({len(values) for values in norms.values()})
    if len(lengths) > 1:
        raise invalid(
            "norms", f"tensors have from {lengths[0]} to {lengths[-1]} steps; give each the same."
        )
    steps = lengths[0] if lengths else 0
    if steps * len(norms) > MOST_NORMS:
        raise invalid("norms", f"at most {MOST_NORMS} norms in all; the newest steps are enough.")
    columns = [_as_stored(values) for values in norms.values()]
    whole = np.stack(columns, axis=1) if columns else np.empty((0, 0))
    finite = np.any(~np.isnan(whole), axis=1)
    given = answer_tensors(
        whole[finite][-TENSOR_STEPS:],
        list(norms),
        asked,
        flood=int(np.count_nonzero(~finite[-FLOOD_WINDOW:])) > FLOOD_WINDOW // 2,
        last_step=steps - 1 if steps else None,
    )
    tried = given["backtest"]
    given["advice"] = advice(sent.optimizer_class, tried["mean_coefficient"] if tried else None)
    return given


def _history(sent: Sent) -> MagnitudeHistory:
    found: Magnitudes = _only(sent, "histograms")
    width, steps = OCTAVES * found.bins_per_octave, len(found.counts)
    longest = max(map(len, found.counts), default=0)
    if longest > width:
        raise invalid(
            "histograms.counts",
            f"a histogram has {longest} bins; {found.bins_per_octave} per octave make {width}.",
        )
    if found.max_abs is not None and len(found.max_abs) != steps:
        raise invalid(
            "histograms.max_abs", f"{len(found.max_abs)} maxima for {steps} histograms; one each."
        )
    padded = [row + [0] * (longest - len(row)) for row in found.counts]
    counts = np.array(padded, np.float64).reshape(steps, longest)
    lowest, bins = found.lowest_exponent, found.bins_per_octave
    largest = np.zeros((steps, 0)) if found.max_abs is None else np.array([found.max_abs]).T
    return MagnitudeHistory(
        steps=np.arange(steps),
        counts=aligned(counts, bins, lowest, to_bins=bins, to_lowest=lowest),
        bins_per_octave=bins,
        lowest_exponent=lowest,
        sampled=found.sampled,
        largest=largest,
        finite_steps=steps,
        flood=False,
        last_step=steps - 1 if steps else None,
    )


def _only(sent: Sent, field: str) -> Any:
    """The field this policy needs; the others must not be there: they would be ignored in silence."""
    for other in ("norms", "ratios", "histograms"):
        there = getattr(sent, other) is not None
        if there and other != field:
            raise invalid(other, f"policy={sent.policy} goes by {field}; leave {other} out.")
        if not there and other == field:
            raise invalid(field, f"policy={sent.policy} needs {field}.")
    return getattr(sent, field)


def _as_stored(values: list[float | None]) -> Floats:
    """As float64. Stored norms are float32; the same rounding here gives the same answer."""
    return np.array(values, np.float64).astype(np.float32).astype(np.float64)
