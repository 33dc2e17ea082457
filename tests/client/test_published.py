"""Each published rule beside its paper's formula, written down once more in plain Python."""

import math

import numpy as np
import pytest
import torch
from tests.client.norm_streams import follow, recorded_like

import gradwatch
from gradwatch import Clipper

published = gradwatch.clip.published
NORMS = recorded_like(400)


def check(policy, expected):
    found = [after for _, after in follow(Clipper(policy), NORMS)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert any(after < norm * 0.9 for after, norm in zip(found, NORMS, strict=True))


@pytest.mark.parametrize("percentile", [10.0, 50.0, 90.0])
def test_autoclip_clips_to_the_percentile_of_all_norms_with_the_newest(percentile):
    history, expected = [], []
    for norm in NORMS:
        history.append(norm)
        expected.append(norm * min(1, np.percentile(history, percentile) / norm))

    check(published.autoclip(percentile), expected)


def test_autoclip_with_a_short_history_forgets_the_oldest():
    expected = [
        min(norm, np.percentile(NORMS[max(0, step - 49) : step + 1], 10))
        for step, norm in enumerate(NORMS)
    ]

    check(published.autoclip(history=50), expected)


def zclip(norms, *, z, decay, warmup, max_norm, factor):
    """Authors' code, in the order it works."""
    buffer, after, mean, variance = [], [], None, None
    for norm in norms:
        limit = None
        if mean is None:
            buffer.append(norm)
            if len(buffer) >= warmup:
                mean = sum(buffer) / len(buffer)
                variance = sum((x - mean) ** 2 for x in buffer) / len(buffer)
        else:
            deviation = math.sqrt(variance)
            score = (norm - mean) / (deviation + 1e-6)
            if score > z:
                eta = score / z
                limit = factor * (mean + z * deviation / eta)
            value = norm if limit is None else limit
            mean = decay * mean + (1 - decay) * value
            variance = decay * variance + (1 - decay) * (value - mean) ** 2
        target = min(norm if limit is None else limit, max_norm or math.inf)
        # The code divides by norm + 1e-6 even where nothing is above its limit; ours does not.
        after.append(norm * target / (norm + 1e-6) if norm > target else norm)
    return after


@pytest.mark.parametrize(
    "numbers",
    [
        {"z": 2.5, "decay": 0.97, "warmup": 25, "max_norm": 1.0, "factor": 1.0},
        {"z": 2.5, "decay": 0.97, "warmup": 25, "max_norm": None, "factor": 1.0},
        {"z": 1.5, "decay": 0.9, "warmup": 5, "max_norm": 20.0, "factor": 0.8},
    ],
    ids=str,
)
def test_zclip_draws_spikes_back_to_the_mean_as_the_authors_code_does(numbers):
    expected = zclip(NORMS, **numbers)

    assert all(math.isfinite(after) for after in expected)
    check(published.zclip(**numbers), expected)


def test_zclip_has_the_authors_defaults():
    assert published.zclip() == published.zclip(
        2.5, decay=0.97, warmup=25, max_norm=1.0, factor=1.0
    )


def adagc(streams, ratio, decay, warmup, max_norm):
    means, after = [None] * len(streams), []
    for step, norms in enumerate(zip(*streams, strict=True), start=1):
        joint = math.sqrt(sum(norm**2 for norm in norms))
        row = []
        for i, norm in enumerate(norms):
            if step < warmup:
                clipped = min(max_norm / (joint + 1e-8), 1) * norm
                means[i] = clipped if means[i] is None else min(means[i], clipped)
            else:
                clipped = min(1, ratio * max(means[i], 1e-8) / max(norm, 1e-8)) * norm
                means[i] = decay * means[i] + (1 - decay) * clipped
            row.append(clipped)
        after.append(row)
    return after


@pytest.mark.parametrize(
    "numbers",
    [
        {"ratio": 1.05, "decay": 0.98, "warmup": 100, "max_norm": 1.0},
        {"ratio": 2.0, "decay": 0.8, "warmup": 7, "max_norm": 5.0},
    ],
    ids=str,
)
def test_adagc_limits_each_tensor_by_its_own_mean(numbers):
    streams = [recorded_like(300, seed) for seed in (1, 2, 3)]
    clipper, found = Clipper(published.adagc(**numbers)), []
    for norms in zip(*streams, strict=True):
        grads = [torch.tensor([0.6, 0.8], dtype=torch.float64) * norm for norm in norms]
        found.append(clipper.clip_(grads).to_dict()["norm_after"])

    expected = adagc(streams, **numbers)
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("share", "rate"), [(0.5, 0.2), (0.9, 0.02)])
def test_quantile_follows_the_geometric_update(share, rate):
    limit, expected = 0.1, []
    for norm in NORMS:
        expected.append(min(norm, limit))
        limit *= math.exp(-rate * ((norm <= limit) - share))

    check(published.quantile(share, rate=rate), expected)


def test_quantile_leaves_its_share_of_the_steps_alone_in_the_long_run():
    norms = [math.exp(0.5 * math.sin(step * 12.9898) * 3) for step in range(1500)]
    found = follow(Clipper(published.quantile(0.8, rate=0.1, initial=1.0)), norms)

    left = sum(after >= norm * (1 - 1e-9) for norm, (_, after) in zip(norms, found, strict=True))
    assert left / len(norms) == pytest.approx(0.8, abs=0.02)
