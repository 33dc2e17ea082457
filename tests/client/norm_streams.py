"""Norms as jobs report them, gradients that have them, and clippers driven by them."""

import math
import random

import torch
from torch import Tensor

import gradwatch

__all__ = ["LEARNED", "follow", "gradients_of_norm", "recorded_like"]

PUBLISHED = gradwatch.clip.published
LEARNED = [
    gradwatch.clip.adaptive(),
    gradwatch.clip.adaptive(0.1, window=8, initial=2.0, minimum=0.5, maximum=5.0),
    gradwatch.clip.adaptive(preference="guard"),
    PUBLISHED.autoclip(),
    PUBLISHED.autoclip(90.0, history=16),
    PUBLISHED.zclip(max_norm=None, warmup=10),
    PUBLISHED.zclip(warmup=10),
    PUBLISHED.adagc(warmup=12),
    PUBLISHED.quantile(),
    gradwatch.clip.spike_skip(window=16),
]


def recorded_like(steps: int, seed: int = 0) -> list[float]:
    """Norms with a heavy upper tail that fall as training goes on, with spikes and a rise of level."""
    source, norms = random.Random(seed), []
    for step in range(steps):
        level = 3 * math.exp(-step / steps) * (4 if 0.6 < step / steps < 0.8 else 1)
        spike = source.choice([8, 60]) if source.random() < 0.02 else 1
        norms.append(level * spike * math.exp(0.3 * source.gauss(0, 1)))
    return norms


def gradients_of_norm(norm: float) -> list[Tensor]:
    """Two tensors, the joint norm of which is ``norm`` to float64."""
    first = torch.tensor([0.36, 0.48], dtype=torch.float64) * norm
    return [first, torch.tensor([[0.8]], dtype=torch.float64) * norm]


def follow(
    clipper: gradwatch.Clipper, norms: list[float], rates: list[float | None] | None = None
) -> list[tuple[float, float]]:
    """Return the threshold and the norm after clipping of each step."""
    steps = [
        clipper.clip_(gradients_of_norm(norm), learning_rate=rate).to_dict()
        for norm, rate in zip(norms, rates or [None] * len(norms), strict=True)
    ]
    return [(one["threshold"], one["global_norm_after"]) for one in steps]
