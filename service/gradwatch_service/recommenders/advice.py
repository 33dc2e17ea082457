"""What clipping that often means for the optimizer that takes the step."""

from __future__ import annotations

__all__ = ["advice"]

CHEAP = 0.95  # a mean coefficient above this costs next to nothing under any optimizer

DIVIDING = (
    "adam", "adagrad", "adadelta", "adafactor", "adabelief", "adan", "adopt", "ademamix", "rmsprop",
    "laprop", "yogi", "novograd", "prodigy", "shampoo", "soap", "sophia", "sm3", "came", "apollo",
    "ranger", "galore",
)  # fmt: skip
# Parts of class names and what holds for them, in this order: SignSGD is no plain SGD.
FAMILIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("bfgs",),
        "{} takes its curvature from differences of gradients, which clipping falsifies: let it clip "
        "rarely (preference=guard).",
    ),
    (
        ("sign", "lion", "rprop", "tiger"),
        "{} uses signs: clipping by norm hardly changes its step length; it only makes a spike weigh "
        "less in the momentum.",
    ),
    (
        ("muon", "lars", "lamb", "normsgd", "normalizedsgd"),
        "{} normalises its step: a high clip rate hardly changes its length; clipping only keeps "
        "spikes from taking over the momentum.",
    ),
    (
        DIVIDING,
        "{} divides by its own estimate of the gradient's size, so a high clip rate hardly changes the "
        "step length.",
    ),
)
PLAIN = ("sgd", "momentum", "nesterov")


def advice(optimizer: str | None, coefficient: float | None) -> str | None:
    """A sentence on clipping by ``coefficient`` on average, or None when nothing can be said.

    A plain step shrinks with the gradient; one that is divided by a running estimate of the
    gradient's size does not (Kingma and Ba 2015, "Adam", section 2.1: invariant to rescaling).

    Args:
        optimizer: Class name such as ``AdamW``; None is not known.
        coefficient: Mean of min(1, threshold / norm) over the recorded steps.
    """
    if not optimizer or coefficient is None:
        return None
    name = optimizer.lower()
    for parts, sentence in FAMILIES:
        if any(part in name for part in parts):
            return sentence.format(optimizer)
    if coefficient >= CHEAP:
        return f"Under {optimizer} this costs almost nothing of the step length."
    if any(part in name for part in PLAIN):
        return (
            f"Under {optimizer} the step shrinks with the gradient: on average to {coefficient:.2f} of "
            "its length, as if the learning rate were cut by that factor. Raise the learning rate by "
            "its inverse, or ask for preference=guard."
        )
    return (
        f"How {optimizer} turns gradients into steps is not known here. Where the step grows with the "
        f"gradient, as under SGD, it shrinks to {coefficient:.2f} of its length on average; where it is "
        "divided by the gradient's own size, as under Adam, it hardly changes."
    )
