"""One bad value, one spike, one level shift: what is left of a clipping rule afterwards.

    python -m benchmarks poison

Published rules as their papers or reference code state them, on norms alone, beside the service's
rule. Lognormal norms (sigma 0.2 and 0.5); a NaN or an infinity; at step 1500 a spike of 50
times the median; from 2000 on three times the level.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from gradwatch_service.recommenders.norm import advance_norms, initial_state

STEPS, BAD, SPIKE, SHIFT = 5000, 1000, 1500, 2000

Rule = Callable[[float], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="Seeds per row.")
    seeds = parser.parse_args().seeds
    print(
        "| rule | sigma | clipped, steps 500 to 1000 | after NaN | after infinity "
        "| spike of x50 passed at | steps until a x3 level is followed |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, make in RULES.items():
        for sigma in (0.2, 0.5):
            found = [judge(make, sigma, seed) for seed in range(seeds)]
            print(f"| {name} | {sigma} | " + " | ".join(summed(found)) + " |")


def judge(make: Callable[[], Rule], sigma: float, seed: int) -> dict[str, Any]:
    clean = np.exp(np.random.default_rng(seed).normal(0, sigma, STEPS))
    clean[SPIKE] = 50.0
    clean[SHIFT:] *= 3
    result = {"nan": poisoned(make, math.nan), "inf": poisoned(make, math.inf)}
    rule = make()
    # The limit in force: what the rule allows this norm, given what it has seen.
    limits = np.array([rule(norm) for norm in clean])
    clipped = clean > limits
    usual = clipped[500:BAD].mean()
    window = np.convolve(clipped[SHIFT:], np.ones(100) / 100, "valid")
    again = np.flatnonzero(window <= max(2 * usual, 0.02)) if usual < 0.5 else []
    return result | {
        "usual": usual,
        "spike": min(limits[SPIKE], 50.0),
        "followed": int(again[0]) + 100 if len(again) else None,
        "comparable": usual < 0.5,
        "limit": limits[-1] / 3 / limits[SPIKE - 1] if usual >= 0.5 else math.nan,
    }


def poisoned(make: Callable[[], Rule], bad: float) -> str:
    """What 1500 coefficients after one bad value are, beside those of a rule that never saw it."""
    norms = np.exp(np.random.default_rng(11).normal(0, 0.3, BAD + 1501))
    hurt, well = make(), make()
    seen = [hurt(bad if i == BAD else norm) for i, norm in enumerate(norms)]
    without = [well(norm) for i, norm in enumerate(norms) if i != BAD]
    after, later = np.array(seen[BAD + 1 :]), norms[BAD + 1 :]
    if np.isnan(after).all():
        return "NaN for ever"
    if np.isnan(after).any():
        return f"NaN for {int(np.isnan(after).sum())} steps"
    scaled = np.minimum(after, later) / np.minimum(np.array(without[BAD:]), later)
    apart = float(np.abs(scaled - 1).max())
    return "untouched" if apart < 1e-9 else f"coefficient off by {apart:.1%}"


def summed(found: list[dict[str, Any]]) -> list[str]:
    followed = [f["followed"] for f in found]
    shift = "never, in 3000" if None in followed else f"{np.mean([x or 0 for x in followed]):.0f}"
    if not found[0]["comparable"]:
        shift = f"limit at {np.mean([f['limit'] for f in found]):.0%} of the new level after 3000"
    return [
        f"{np.mean([f['usual'] for f in found]):.1%}",
        found[0]["nan"],
        found[0]["inf"],
        f"{np.mean([f['spike'] for f in found]):.2f} x median",
        shift,
    ]


def service(preference: str) -> Callable[[], Rule]:
    """The service's rule; the limit of a step comes from the steps before it."""

    def make() -> Rule:
        state = initial_state()

        def limit(norm: float) -> float:
            nonlocal state
            threshold = state.threshold(preference) or math.inf
            finite = math.isfinite(norm)
            row = np.array([state.seen]), np.array([norm if finite else 0.0]), np.array([finite])
            state = advance_norms(state, *row, np.array([math.nan]))
            return threshold

        return limit

    return make


def autoclip() -> Rule:
    """Seetharaman et al. 2020, section 2: the 10th percentile of all norms, this one included."""
    seen: list[float] = []

    def limit(norm: float) -> float:
        seen.append(norm)
        return float(np.percentile(seen, 10))

    return limit


def quantile() -> Rule:
    """The autoclip package's QuantileClip: the 0.9 quantile of the last 1000 norms."""
    seen: deque[float] = deque(maxlen=1000)

    def limit(norm: float) -> float:
        seen.append(norm)
        return float(np.quantile(seen, 0.9))

    return limit


def zclip(z_limit: float = 2.5, decay: float = 0.97, warm_up: int = 25) -> Rule:
    """Kumar et al. 2025, section 3: z-score of the norm, reciprocal clipping, without its cap of 1."""
    first: list[float] = []
    mean = variance = math.nan

    def limit(norm: float) -> float:
        nonlocal mean, variance
        if len(first) < warm_up:
            first.append(norm)
            mean, variance = float(np.mean(first)), float(np.var(first))
            return math.inf
        deviation = math.sqrt(variance) if variance >= 0 else math.nan
        z = (norm - mean) / (deviation + 1e-6)
        allowed = mean + (z_limit**2 / z) * deviation if z > z_limit else math.inf
        taken = min(norm, allowed) if not math.isnan(norm) else norm
        variance = decay * variance + (1 - decay) * (taken - mean) ** 2
        mean = decay * mean + (1 - decay) * taken
        # A comparison with NaN is false, so a poisoned state clips nothing: shown as NaN.
        return math.nan if math.isnan(mean) else allowed

    return limit


def adagc(relative: float = 1.05, decay: float = 0.98, warm_up: int = 100) -> Rule:
    """Wang et al. 2025, algorithm 1, on the global norm; absolute limit 1 during warm-up."""
    level, step = math.inf, 0

    def limit(norm: float) -> float:
        nonlocal level, step
        step += 1
        if step <= warm_up:
            taken = norm if math.isnan(norm) else min(norm, 1.0)
            level = min(level, taken) if not math.isnan(taken) else math.nan
            return 1.0
        allowed = relative * level
        taken = norm if math.isnan(norm) else min(norm, allowed)
        level = decay * level + (1 - decay) * taken
        return allowed

    return limit


RULES: dict[str, Callable[[], Rule]] = {
    "service, balanced": service("balanced"),
    "service, tight": service("tight"),
    "service, guard": service("guard"),
    "AutoClip p10": autoclip,
    "QuantileClip .9 / 1000": quantile,
    "ZClip without cap": zclip,
    "AdaGC on the global norm": adagc,
}


if __name__ == "__main__":
    main()
