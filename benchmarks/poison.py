"""One bad value, one spike, one level shift: what is left of a clipping rule afterwards.

    python -m benchmarks poison

Three kinds of rule on the same norms: the service's, step by step; the client's policies at work, on
gradients that have these norms and, once, a NaN or an infinity in them; published rules as their
papers or reference code state them, written down once more. A rule is judged by what it leaves: the
norm after clipping over the norm before. Lognormal norms (sigma 0.2 and 0.5); at step 1500 a spike of
50 times the median; from 2000 on three times the level.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.machine import cpu_name

from gradwatch import Clipper, clip
from gradwatch.clipping.policies import Policy
from gradwatch.watching.following import Following, recommended_part
from gradwatch_service.recommenders.answer import answer_norm
from gradwatch_service.recommenders.base import Asked
from gradwatch_service.recommenders.norm import NormState, advance_norms, initial_state

STEPS, BAD, SPIKE, SHIFT = 5000, 1000, 1500, 2000
AFTER_BAD = 1500

# From a step's norm to the share of it that is left; a NaN or infinite norm is that of a bad step.
Rule = Callable[[float], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="Seeds per row.")
    parser.add_argument("--only", default="", help="Only rules whose name holds this.")
    arguments = parser.parse_args()
    seeds = arguments.seeds
    torch.set_num_threads(1)
    started = time.process_time()
    print(f"{cpu_name()}; torch {torch.__version__}, one thread\n")
    print(
        "| rule | sigma | clipped, steps 500 to 1000 | after NaN | after infinity "
        "| spike of x50 passed at | steps until a x3 level is followed |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in [name for name in RULES if arguments.only in name]:
        make = RULES[name]
        bad = [poisoned(make, math.nan), poisoned(make, math.inf)]
        for sigma in (0.2, 0.5):
            found = [judge(make, sigma, seed) for seed in range(seeds)]
            cells = summed(found)
            print(
                f"| {name} | {sigma} | " + " | ".join([cells[0], *bad, *cells[1:]]) + " |",
                flush=True,
            )
    print("\n| published | client, largest difference of a factor in 1500 finite steps | why |")
    print("|---|---|---|")
    for name, (ours, theirs, why) in PAIRS.items():
        print(f"| {name} | {apart(ours, theirs):.1e} | {why} |")
    print(f"\n{time.process_time() - started:.0f} s of CPU time")


def judge(make: Callable[[], Rule], sigma: float, seed: int) -> dict[str, Any]:
    clean = np.exp(np.random.default_rng(seed).normal(0, sigma, STEPS))
    clean[SPIKE] = 50.0
    clean[SHIFT:] *= 3
    rule = make()
    left = np.array([rule(norm) for norm in clean])
    clipped, passed = left < 1, left * clean
    usual = clipped[500:BAD].mean()
    window = np.convolve(clipped[SHIFT:], np.ones(100) / 100, "valid")
    again = np.flatnonzero(window <= max(2 * usual, 0.02)) if usual < 0.5 else []
    return {
        "usual": usual,
        "spike": passed[SPIKE],
        "followed": int(again[0]) + 100 if len(again) else None,
        "comparable": usual < 0.5,
        "level": passed[-500:].mean() / 3 / passed[BAD:SPIKE].mean(),
    }


def poisoned(make: Callable[[], Rule], bad: float) -> str:
    """What 1500 factors after one bad value are, beside those of a rule that never saw it."""
    norms = some_norms()
    hurt, well = make(), make()
    seen = [hurt(bad if i == BAD else norm) for i, norm in enumerate(norms)]
    calm = [well(norm) for norm in norms[:BAD]]
    getattr(well, "pass_over", lambda: None)()
    without = np.array([*calm, *map(well, norms[BAD + 1 :])])[BAD:]
    after = np.array(seen[BAD + 1 :])
    if np.isnan(after).all():
        return "NaN for ever"
    if np.isnan(after).any():
        return f"NaN for {int(np.isnan(after).sum())} steps"
    skipped = int(np.count_nonzero((after == 0) & (without > 0)))
    if skipped:
        return f"{skipped} more steps skipped"
    ratio = np.divide(after, without, out=np.ones_like(after), where=without > 0)
    off = float(np.abs(ratio - 1).max())
    return "untouched" if off < 1e-9 else f"factor off by {off:.1%}"


def apart(ours: Callable[[], Rule], theirs: Callable[[], Rule]) -> float:
    """Largest difference between two rules on the same finite norms."""
    mine, other = ours(), theirs()
    return max(abs(mine(norm) - other(norm)) for norm in some_norms()[:1500])


def some_norms() -> list[float]:
    return np.exp(np.random.default_rng(11).normal(0, 0.3, BAD + 1 + AFTER_BAD)).tolist()


def summed(found: list[dict[str, Any]]) -> list[str]:
    followed = [f["followed"] for f in found]
    shift = "never, in 3000" if None in followed else f"{np.mean([x or 0 for x in followed]):.0f}"
    if not found[0]["comparable"]:
        shift = f"passes {np.mean([f['level'] for f in found]):.0%} of the new level after 3000"
    return [
        f"{np.mean([f['usual'] for f in found]):.1%}",
        f"{np.mean([f['spike'] for f in found]):.2f} x median",
        shift,
    ]


def left_by(limit: float, norm: float) -> float:
    """Norm clipping at a limit; a limit that is NaN makes the gradient NaN, as the formulas do."""
    return math.nan if math.isnan(limit) else min(1.0, limit / norm)


class Observed:
    """What the service's rule knows after each step; the limit of a step comes from those before it."""

    def __init__(self) -> None:
        self.state: NormState = initial_state()

    def see(self, norm: float) -> None:
        """Take a step's norm in."""
        finite = math.isfinite(norm)
        row = np.array([self.state.seen]), np.array([norm if finite else 0.0]), np.array([finite])
        self.state = advance_norms(self.state, *row, np.array([math.nan]))


def service(preference: str) -> Rule:
    """The service's rule, followed without delay."""
    observed = Observed()

    def rule(norm: float) -> float:
        limit = observed.state.threshold(preference) or math.inf
        observed.see(norm)
        return left_by(limit, norm)

    return rule


def gradient_of(norm: float) -> torch.Tensor:
    """Two elements with this norm; a bad one stands beside a healthy one."""
    if math.isfinite(norm):
        return torch.tensor([0.6 * norm, 0.8 * norm], dtype=torch.float64)
    return torch.tensor([norm, 0.8], dtype=torch.float64)


def client(policy: Policy) -> Rule:
    """A policy at work; learns from the gradients themselves."""
    clipper = Clipper(policy)

    def rule(norm: float) -> float:
        grad = gradient_of(norm)
        clipper.clip_([grad])
        # The healthy element tells the factor, also at a bad step.
        return float(grad[1]) / float(gradient_of(norm)[1])

    return rule


class Followed:
    """``clip.recommended`` with the service's answers, asked for at every boundary, within its clamps."""

    def __init__(self, base: float, interval: int) -> None:
        policy = clip.recommended(clip.norm(base), interval=interval)
        part = recommended_part(policy)
        assert part is not None
        self._clipper, self._observed = Clipper(policy), Observed()
        self._following = Following(
            part, self._clipper, lambda: answer_norm(self._observed.state, Asked())
        )
        self._step = 0

    def __call__(self, norm: float) -> float:
        """As any rule."""
        self._following(self._step)
        self._step += 1
        grad = gradient_of(norm)
        self._clipper.clip_([grad])
        self._observed.see(norm)
        return float(grad[1]) / float(gradient_of(norm)[1])

    def pass_over(self) -> None:
        """Let a step go by, so that boundaries stay where they are."""
        self._following(self._step)
        self._step += 1


def autoclip() -> Rule:
    """Seetharaman et al. 2020, section 2: the 10th percentile of all norms, this one included."""
    seen: list[float] = []

    def rule(norm: float) -> float:
        seen.append(norm)
        return left_by(float(np.percentile(seen, 10)), norm)

    return rule


def quantile_clip() -> Rule:
    """The autoclip package's QuantileClip: the 0.9 quantile of the last 1000 norms."""
    seen: deque[float] = deque(maxlen=1000)

    def rule(norm: float) -> float:
        seen.append(norm)
        return left_by(float(np.quantile(seen, 0.9)), norm)

    return rule


def tracker(share: float = 0.9, rate: float = 0.02) -> Rule:
    """Andrew et al. 2021, section 2, one norm per step: C <- C exp(-rate (b - share))."""
    limit = 0.1

    def rule(norm: float) -> float:
        nonlocal limit
        left = left_by(limit, norm)
        limit *= math.exp(-rate * ((norm <= limit) - share))
        return left

    return rule


def zclip(z_limit: float = 2.5, decay: float = 0.97, warm_up: int = 25) -> Rule:
    """Kumar et al. 2025, section 3: z-score of the norm, reciprocal clipping, without its cap of 1."""
    first: list[float] = []
    mean = variance = math.nan

    def rule(norm: float) -> float:
        nonlocal mean, variance
        if len(first) < warm_up:
            first.append(norm)
            mean, variance = float(np.mean(first)), float(np.var(first))
            return 1.0
        deviation = math.sqrt(variance) if variance >= 0 else math.nan
        z = (norm - mean) / (deviation + 1e-6)
        allowed = mean + (z_limit**2 / z) * deviation if z > z_limit else math.inf
        taken = min(norm, allowed) if not math.isnan(norm) else norm
        mean = decay * mean + (1 - decay) * taken
        variance = decay * variance + (1 - decay) * (taken - mean) ** 2
        # A comparison with NaN is false, so a poisoned state clips nothing: shown as NaN.
        return left_by(math.nan if math.isnan(mean) else allowed, norm)

    return rule


def adagc(relative: float = 1.05, decay: float = 0.98, warm_up: int = 100) -> Rule:
    """Wang et al. 2025, algorithm 1, on one tensor; absolute limit 1 until step ``warm_up``."""
    level, step = math.inf, 0

    def rule(norm: float) -> float:
        nonlocal level, step
        step += 1
        if step < warm_up:
            taken = norm if math.isnan(norm) else min(norm, 1.0)
            level = min(level, taken) if not math.isnan(taken) else math.nan
            return left_by(1.0, norm)
        allowed = relative * level
        taken = norm if math.isnan(norm) else min(norm, allowed)
        level = decay * level + (1 - decay) * taken
        return left_by(allowed, norm)

    return rule


def skip_step(window: int = 128, deviations: float = 6.0) -> Rule:
    """OLMo-core's SkipStepOptimizer on the norm: skip above mean + 6 deviations of the last 128."""
    seen: deque[float] = deque(maxlen=window)

    def rule(norm: float) -> float:
        known = np.array(seen)
        seen.append(norm)
        if len(known) < window // 2:
            return 1.0
        with np.errstate(invalid="ignore"):  # an infinity among them makes the deviation NaN
            kept = norm - known.mean() <= deviations * known.std()
        return float(kept)

    return rule


published = clip.published
OURS = {
    "AutoClip p10": published.autoclip(),
    "ZClip without cap": published.zclip(max_norm=None),
    "AdaGC": published.adagc(),
    "quantile tracker .9, rate .02": published.quantile(0.9, rate=0.02),
}
RULES: dict[str, Callable[[], Rule]] = {
    **{f"service, {p}": functools.partial(service, p) for p in ("balanced", "tight", "guard")},
    **{
        f"client, adaptive {p}": functools.partial(client, clip.adaptive(preference=p))
        for p in ("balanced", "tight", "guard")
    },
    "client, recommended, base 5, every 50": functools.partial(Followed, 5.0, 50),
    "client, spike_skip": functools.partial(client, clip.spike_skip()),
    **{f"client, {name}": functools.partial(client, policy) for name, policy in OURS.items()},
    "as published: AutoClip p10": autoclip,
    "as published: QuantileClip .9 / 1000": quantile_clip,
    "as published: ZClip without cap": zclip,
    "as published: AdaGC": adagc,
    "as published: quantile tracker .9, rate .02": tracker,
    "as published: skip-step, 6 of 128": skip_step,
}
PAIRS: dict[str, tuple[Callable[[], Rule], Callable[[], Rule], str]] = {
    name: (functools.partial(client, OURS[name]), theirs, why)
    for name, theirs, why in (
        ("AutoClip p10", autoclip, "the same; after 10 000 norms the oldest leaves"),
        ("ZClip without cap", zclip, "the client adds the authors' 1e-6 to the norm it divides by"),
        ("AdaGC", adagc, "the published epsilons of 1e-8"),
        ("quantile tracker .9, rate .02", tracker, "the same"),
    )
}


if __name__ == "__main__":
    main()
