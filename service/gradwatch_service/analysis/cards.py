"""What an incident says to a person: verdict, why, and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Card", "write_card"]

Evidence = Mapping[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Card:
    """Three short texts: what happened, what the data show of the cause, what to do."""

    verdict: str
    why: str
    next: str


@dataclass(frozen=True, slots=True)
class _Facts:
    observed: float
    expected: float
    first: str | None
    tensors: Sequence[str]
    ranks: Sequence[int]
    evidence: Evidence

    @property
    def ratio(self) -> float:
        return self.observed / self.expected if self.expected > 0 else float("inf")

    @property
    def where(self) -> str:
        return f", first in {self.first}" if self.first else ""

    @property
    def who(self) -> str:
        """The tensors, named while they are few."""
        if len(self.tensors) > 3:
            return f"{len(self.tensors)} tensors, first {self.first}"
        return ", ".join(self.tensors) or "the whole gradient"


def write_card(
    *,
    kind: str,
    cause: str,
    observed: float,
    expected: float,
    first_tensor: str | None,
    tensors: Sequence[str],
    ranks: Sequence[int],
    evidence: Evidence,
) -> Card:
    """Return the card of an incident or notice; a cause without a text of its own says unknown."""
    facts = _Facts(observed, expected, first_tensor, tensors, ranks, evidence)
    why, what_next = _CAUSES.get((kind, cause), _CAUSES.get(("", cause), (_unknown, "")))
    return Card(_VERDICTS[kind](facts), why(facts), what_next or _NEXT[kind])


def _times(ratio: float) -> str:
    if ratio >= 1:
        return f"{ratio:.3g}x"
    return f"1/{1 / ratio:.3g} of" if ratio > 0 else "0x"


def _exploding(f: _Facts) -> str:
    if f.ratio < 1.3 and "cosine" in f.evidence:
        # The norm is usual; what stands out is that the gradients repeat.
        return f"successive gradients repeat: cosine {float(f.evidence['cosine']):.2f}{f.where}"
    return f"global norm {_times(f.ratio)} its recent level{f.where}"


def _vanishing(f: _Facts) -> str:
    if f.observed <= 0:
        return f"gradient exactly zero in {f.who}"
    return f"gradient at {_times(f.ratio)} its usual level in {f.who}"


def _oscillating(f: _Facts) -> str:
    return (
        f"successive gradients point against each other: cosine {f.observed:.2f}, "
        f"usually {f.expected:.2f}"
    )


def _nonfinite(f: _Facts) -> str:
    ranks = f" on rank {', '.join(map(str, f.ranks))}" if f.evidence.get("one_rank") else ""
    others = f" and {len(f.tensors) - 1} more tensors" if len(f.tensors) > 1 else ""
    elements = (
        "1 NaN or Inf element" if f.observed == 1 else f"{f.observed:.0f} NaN or Inf elements"
    )
    return f"{elements}{ranks}, first in {f.first}{others}"


_VERDICTS: Final[Mapping[str, Callable[[_Facts], str]]] = {
    "exploding": _exploding,
    "vanishing": _vanishing,
    "oscillating": _oscillating,
    "nonfinite": _nonfinite,
    "replicas_apart": lambda f: (
        f"rank {', '.join(map(str, f.ranks))} has come apart from the others{f.where}"
    ),
    "rank_missing": lambda f: f"no reports from rank {', '.join(map(str, f.ranks))}",
    "overclipping": lambda f: f"clipping leaves {f.observed:.0%} of the gradient's norm",
    "underflow": lambda f: f"{f.observed:.0%} of the elements of {f.who} underflow their dtype",
    "reports_dropped": lambda f: f"{f.observed:.0f} steps were not reported",
}

_NEXT: Final[Mapping[str, str]] = {
    "exploding": "clip at the recommended threshold; if it comes back, lower the learning rate "
    "and look at the batch of the onset step",
    "vanishing": "look at the activations and the initialisation just before the first tensor "
    "named; clipping does not cure vanishing gradients",
    "oscillating": "lower the learning rate or the momentum by a factor of 2",
    "nonfinite": "watch with nonfinite='skip', so that such a step is not applied, and look at the batch "
    "and the operations after the first tensor named (log, sqrt, division, fp16 range)",
    "replicas_apart": "compare the ranks' parameters; restart from a checkpoint and check that "
    "every rank uses the same threshold and the same reduced gradient",
    "rank_missing": "look at the logs of that rank and its way to the service",
    "overclipping": "raise the threshold towards the recommended one: such a hard clip acts as "
    "a lower learning rate",
    "underflow": "raise the loss scale, or keep these gradients in bfloat16 or float32",
    "reports_dropped": "look at the client's health(): the service was away, too slow or too far",
}


def _unknown(f: _Facts) -> str:
    del f
    return "the reported data do not show the cause"


def _learning_rate(f: _Facts) -> str:
    ratio, step = float(f.evidence.get("learning_rate_ratio", 0)), f.evidence.get("at_step")
    return f"learning rate rose x{ratio:.3g} at step {step}"


def _same_direction(f: _Facts) -> str:
    return (
        "successive gradients point the same way (cosine "
        f"{float(f.evidence.get('cosine', 0)):.2f}, usually "
        f"{float(f.evidence.get('usual_cosine', 0)):.2f}) while the norm grows: gradients add up"
    )


_CAUSES: Final[Mapping[tuple[str, str], tuple[Callable[[_Facts], str], str]]] = {
    ("", "learning_rate_change"): (
        _learning_rate,
        "check the schedule; go back to the learning rate before it, or warm up to the new one",
    ),
    ("exploding", "zero_grad_missing"): (
        _same_direction,
        "call optimizer.zero_grad() before every backward, or divide the loss by the number of "
        "accumulated batches",
    ),
    ("exploding", "same_batch_again"): (
        lambda f: (
            "gradients repeat (cosine "
            f"{float(f.evidence.get('cosine', 0)):.2f}) and differ from the usual ones: the same "
            "batch again, or batches with something in common"
        ),
        "check the sampler and the shuffling, and the labels of the batches since the onset step",
    ),
    ("exploding", "loss_scale"): (
        lambda f: (
            "every tensor grew by about the same factor "
            f"({float(f.evidence.get('factor', 0)):.3g}x): the gradient is scaled"
        ),
        "unscale before clipping and stepping (scaler.unscale_(optimizer)), and check the scale "
        "of the loss",
    ),
    ("exploding", "bad_start"): (
        lambda f: (
            "within the first steps the norm rose "
            f"{float(f.evidence.get('factor', 0)):.3g}x, and the loss above where it began"
        ),
        "lower the learning rate or warm it up; clip from the first step on; check the "
        "initialisation",
    ),
    ("exploding", "grown_alike"): (
        lambda f: (
            "the tensors grew together, for several steps and by about "
            f"{float(f.evidence.get('factor', 0)):.3g}x, while the loss is as usual: the gradient "
            "adds up or is scaled, the batches are not to blame"
        ),
        "check optimizer.zero_grad(), the number of accumulated batches the loss is divided by, "
        "and the scale of the loss",
    ),
    ("exploding", "unusual_batch"): (
        lambda f: (
            "loss and norm rose together at one step, with the learning rate unchanged: the batch "
            f"of step {f.evidence.get('at_step')} differs from those before"
        ),
        "look at the inputs and labels of that batch; clip at the recommended threshold so that "
        "one batch cannot do harm",
    ),
    ("", "weights_jumped"): (
        lambda f: (
            f"the norm of {f.evidence.get('weight')} changed x"
            f"{float(f.evidence.get('weight_ratio', 0)):.3g} at step {f.evidence.get('at_step')}"
        ),
        "find what wrote these weights at that step (a loaded checkpoint, an update without "
        "clipping, an edit); go back to the weights before it",
    ),
    ("nonfinite", "loss_scale"): (
        lambda _: "the loss scale was too high for this step, which was skipped",
        "nothing, while it happens about once per growth interval of the scaler; otherwise lower "
        "init_scale or growth_factor",
    ),
    ("nonfinite", "loss_not_finite"): (
        lambda _: (
            "the loss itself was NaN or Inf at that step: it came up before the backward pass"
        ),
        "look at the inputs and targets of that batch, and at the loss (log or division by zero, "
        "empty masks); watch with nonfinite='skip', so that such a step is not applied",
    ),
    ("nonfinite", "backward"): (
        lambda f: (
            f"the loss was finite at that step: it came up in the backward pass, first in {f.first}, "
            "or in the reduction over ranks"
        ),
        "watch with nonfinite='skip', so that such a step is not applied; look at the operations "
        "right after that tensor whose derivative is infinite (sqrt, norm or log at zero, division)",
    ),
    ("nonfinite", "never_cleared"): (
        lambda _: (
            "step after step overflows and is skipped, far longer than a loss scaler needs to find "
            "its scale"
        ),
        "check that optimizer.zero_grad() is called after skipped steps as well: what is Inf stays "
        "Inf while gradients add up; then look at the loss",
    ),
    ("nonfinite", "overflow"): (
        lambda _: "elements are Inf, not NaN: a number left the range of its dtype",
        "use dynamic loss scaling (torch.amp.GradScaler) or bfloat16",
    ),
    ("nonfinite", "one_rank"): (
        lambda f: f"only rank {', '.join(map(str, f.ranks))} is affected",
        "look at that rank's data shard and device; run its batch on another device",
    ),
    ("nonfinite", "after_exploding"): (
        lambda _: "the gradient exploded in the steps before",
        "start again from a checkpoint before it, with clipping at the recommended threshold",
    ),
    ("replicas_apart", "parameters_differ"): (
        lambda _: "the parameters' checksum differs although the reduced gradients are the same",
        "",
    ),
    ("replicas_apart", "gradients_differ"): (
        lambda _: (
            "the gradients after reduction differ: they were not reduced, or one rank "
            "computes wrongly"
        ),
        "",
    ),
    ("rank_missing", "silent"): (
        lambda f: f"other ranks went on while rank {', '.join(map(str, f.ranks))} sent nothing",
        "",
    ),
    ("overclipping", "threshold_too_low"): (
        lambda _: "at three of four of the last 64 steps clipping left less than a tenth",
        "",
    ),
    ("underflow", "loss_scale"): (
        lambda _: "the magnitude histogram shows them below the dtype's normal range",
        "",
    ),
    ("vanishing", "dead_layer"): (
        lambda _: "all elements are exactly zero: these units no longer take part",
        "lower the learning rate, use a leaky activation, and check that the layer is still "
        "connected to the loss (detach, requires_grad)",
    ),
    ("vanishing", "whole_gradient"): (
        lambda _: (
            "every tensor fell together: a detached graph, a loss of nearly zero, or a schedule"
        ),
        "check that the loss still depends on the parameters (no_grad, detach) and is not zero",
    ),
    ("vanishing", "converged"): (
        lambda _: (
            "every tensor fell by about the same factor and none is zero: training has "
            "converged, or a schedule has ended"
        ),
        "nothing, if the loss is low; otherwise check the schedule and the scale of the loss",
    ),
    ("vanishing", "initialisation"): (
        lambda _: "gradients shrink from layer to layer from the first steps on",
        "use an initialisation that fits the activation (Xavier for tanh and sigmoid, He for "
        "ReLU), normalisation or residual connections",
    ),
    ("vanishing", "saturation"): (
        lambda _: (
            "gradients fell in all tensors before a point while the rest goes on: "
            "saturated units, or a layer cut off"
        ),
        "lower the learning rate, check the scale of the inputs of the layer named last, "
        "normalise them",
    ),
}
