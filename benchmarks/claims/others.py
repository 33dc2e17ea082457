"""Claim 8: what holds for recurrent nets holds for other models."""

import dataclasses

from benchmarks.claims.readings import Experiments, lower_by_ratio
from benchmarks.claims.verdict import Claim

__all__ = ["RESTS_ON", "others"]

MARGIN = 0.015  # log2: 1 %

DAMAGED = "images, CNN, SGD, damaged images"

WHERE = {
    "images, CNN, SGD": "a CNN is trained on clean images",
    DAMAGED: "one image of fifty comes a hundred times too bright",
    "text transformer, AdamW": "a transformer is trained with AdamW",
    "ring, GAN, Adam": "a GAN is trained with Adam",
}
RESTS_ON = tuple(WHERE)


def others(found: Experiments) -> Claim:
    """Compare held-out scores of a CNN, a transformer and a GAN."""
    what = "held-out score, log2 of the ratio"
    norm = ("none", "norm")
    cases = [lower_by_ratio(found[name], when, what, MARGIN) for name, when in WHERE.items()]
    return Claim(
        title="Other models",
        said="Convolutional nets, transformers and GANs gain too: it is a safe default everywhere.",
        experiment="A CNN on images of eight shapes in noise (cross entropy), the same with damaged training images, a one-block "
        "transformer on the text of claim 5 (bits per character), a GAN on a ring of eight Gaussians (energy distance). No other fault.",
        cases=[
            dataclasses.replace(case, calm=name != DAMAGED)
            for name, case in zip(WHERE, cases, strict=True)
        ],
        beside=[
            lower_by_ratio(found[name], f"the norm is clipped instead: {when}", what, MARGIN, arms=norm)
            for name, when in WHERE.items()
        ],
        jobs=RESTS_ON,
    )  # fmt: skip
