"""How right recommendations are: elementwise limits, realised shares, intervals.

Three tables, every number from fixed seeds: run it again and it says the same.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from gradwatch_service.recommenders.answer import answer_norm
from gradwatch_service.recommenders.base import Asked
from gradwatch_service.recommenders.magnitudes import limit_bounds, limit_for, spans, with_known
from gradwatch_service.recommenders.norm import advance_norms, initial_state

LOWEST = -48
ELEMENTS = 200_000

DRAWS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "Student t, 3": lambda rng, n: rng.standard_t(3, n),
    "Student t, 1.5": lambda rng, n: rng.standard_t(1.5, n),
    "lognormal, 3": lambda rng, n: 1e-4 * rng.lognormal(0, 3, n),
    "normal, half zero": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="Seeds per row.")
    arguments = parser.parse_args()
    print(elementwise(arguments.seeds))
    print(shares(arguments.seeds))
    print(coverage(20 * arguments.seeds))


def elementwise(seeds: int) -> str:
    """Error of the elementwise limit by bins per octave, against bisection on the elements."""
    lines = [
        "Elementwise limit from histograms, against the elements themselves "
        f"({ELEMENTS} elements, {seeds} seeds, removed energy 1 % and 5 %)",
        "",
        "| elements | B | stated factor | error, mean | error, largest | removed energy off by "
        "(points, largest) | exact limit inside the interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, draw in DRAWS.items():
        for bins in (1, 2, 4, 8):
            errors, off, inside = [], [], []
            for seed in range(seeds):
                elements = np.abs(draw(np.random.default_rng(seed), ELEMENTS)).astype(np.float32)
                for share in (0.01, 0.05):
                    estimate, interval = from_histogram(elements, bins, share)
                    exact = from_elements(elements, share)
                    errors.append(abs(math.log(estimate / exact)))
                    off.append(abs(removed(elements, estimate) - share))
                    inside.append(interval[0] <= exact * (1 + 1e-6) <= interval[1] * (1 + 2e-6))
            lines.append(
                f"| {name} | {bins} | {2 ** (1 / bins):.3f} | {np.expm1(np.mean(errors)):.1%} "
                f"| {np.expm1(np.max(errors)):.1%} | {100 * np.max(off):.2f} "
                f"| {np.mean(inside):.0%} |"
            )
    return "\n".join([*lines, ""])


def from_histogram(elements, bins: int, share: float):
    counts = np.zeros(64 * bins)
    filled = elements[elements > 0]
    at = np.clip(np.floor((np.log2(filled) - LOWEST) * bins), 0, 64 * bins - 1).astype(int)
    np.add.at(counts, at, 1)
    # As in a report: the largest element of each of 64 steps is known exactly.
    tops = elements[: len(elements) // 64 * 64].reshape(64, -1).max(axis=1).astype(np.float64)
    pooled, cut = with_known(counts, spans(bins, LOWEST), tops)
    return limit_for(pooled[None, :], cut, share)[0], limit_bounds(pooled, cut, share)


def from_elements(elements, share: float) -> float:
    low, high = 1e-12, float(elements.max())
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if removed(elements, middle) <= share else (middle, high)
    return high


def removed(elements, limit: float) -> float:
    wide = elements.astype(np.float64)
    return 1 - float((np.minimum(wide, limit) ** 2).sum() / (wide**2).sum())


def streams(rng):
    """Norms of 2000 steps as jobs show them, by name."""
    n = 2000
    noise = rng.normal(0, 0.3, n)
    drift = np.concatenate([np.linspace(1.5, 0, 300), np.zeros(n - 300)])
    walk = np.cumsum(rng.normal(0, 0.02, n))
    shift = np.where(np.arange(n) < 1000, 0.0, math.log(3))
    spikes = np.where(rng.random(n) < 0.01, math.log(30), 0.0)
    memory = np.zeros(n)
    for i in range(1, n):
        memory[i] = 0.9 * memory[i - 1] + rng.normal(0, 0.13)
    return {
        "independent": noise,
        "falling at first": noise + drift,
        "random walk": noise + walk,
        "level x3 at step 1000": noise + shift,
        "1 % spikes of x30": noise + spikes,
        "autocorrelated, .9": memory,
    }


def shares(seeds: int) -> str:
    """Intended and realised share: each norm against the threshold recommended before it."""
    lines = [
        f"Intended and realised share of clipped steps (2000 steps, {seeds} seeds, after step 100)",
        "",
        "| norms | tight, intended 90 % | balanced, realised | balanced, intended "
        "| guard, intended 0 % | balanced: validated at |",
        "|---|---|---|---|---|---|",
    ]
    found: dict[str, list[tuple[np.ndarray, float, float]]] = {}
    for seed in range(seeds):
        for name, logs in streams(np.random.default_rng(seed)).items():
            found.setdefault(name, []).append(realised(np.exp(logs)))
    for name, rows in found.items():
        tight, balanced, guard = np.mean([r[0] for r in rows], axis=0)
        intended, validated = np.mean([r[1:] for r in rows], axis=0)
        cells = " | ".join(f"{m:.1%}" for m in (tight, balanced, intended, guard))
        lines.append(f"| {name} | {cells} | {validated:.0%} of the steps |")
    return "\n".join([*lines, ""])


def realised(norms) -> tuple[np.ndarray, float, float]:
    """Shares that each preference clipped; what balanced meant to; how often it was validated."""
    state, above, intended, validated = initial_state(), [], [], []
    for step, norm in enumerate(norms):
        if step >= 100:
            limits = [state.threshold(p) for p in ("tight", "balanced", "guard")]
            above.append([norm > limit for limit in limits])
            if step % 50 == 0:
                given = answer_norm(state, Asked())
                intended.append(given["intended_share"])
                validated.append(given["status"] == "validated")
        one = np.array([step]), np.array([norm]), np.array([True]), np.array([np.nan])
        state = advance_norms(state, *one)
    return np.mean(above, axis=0), float(np.mean(intended)), float(np.mean(validated))


def coverage(seeds: int) -> str:
    """How often the interval after 64 steps holds the true level of the rule."""
    lines = [
        f"Interval after 64 steps holds the true level ({seeds} seeds; 95 % is meant)",
        "",
        "| norms | share |",
        "|---|---|",
    ]
    for rho in (0.0, 0.5, 0.8, 0.9):
        held = 0
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            logs = np.zeros(64)
            logs[0] = rng.normal(0, 0.3)
            for i in range(1, 64):
                logs[i] = rho * logs[i - 1] + rng.normal(0, 0.3 * math.sqrt(1 - rho**2))
            steps, finite = np.arange(64), np.ones(64, bool)
            state = advance_norms(initial_state(), steps, np.exp(logs), finite, np.full(64, np.nan))
            low, high = answer_norm(state, Asked())["interval"] or (0.0, 0.0)
            # The true median is 1, the true lowest tenth exp(-1.2816 sigma).
            true = max(2.5 * state.restraint.share, math.exp(-1.2815515655446004 * 0.3))
            held += low <= true <= high
        lines.append(f"| lognormal, autocorrelation {rho} | {held / seeds:.0%} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
