"""Clipping with every statistic, beside torch's clipping and what else people do at each step.

Variants take turns in one process; each turn's CPU time is divided by that of `clip_grad_norm_` in the
same turn, and the median of these ratios is shown. A ratio below 1 is cheaper than torch's clipping
alone. The floors are torch's own sum and in-place product: what visiting memory costs whoever does it.
Options: --sets lstm resnet gpt2 tiny, --threads 1 2, --repeats 15, --peers.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from benchmarks.clip_peers import SLOW, peers
from benchmarks.gradient_sets import SETS, make, quantile
from benchmarks.machine import cpu_name
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import gradwatch
from gradwatch import clip
from gradwatch.errors import KernelError
from gradwatch.kernels import Glance, library
from gradwatch.kernels.reference import basics

BASE = "torch clip_grad_norm_"
FAR = 1e9  # a limit that nothing reaches
SELDOM = 5  # rounds between two turns of what takes many times longer

Turn = Callable[[], object]


def main() -> None:
    options = _options()
    fast = library.load_cpu()
    kernel = f"none ({fast})" if isinstance(fast, KernelError) else "compiled"
    print(
        f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"kernel {kernel}, load {os.getloadavg()[0]:.1f}"
    )
    for threads in options.threads:
        torch.set_num_threads(threads)
        table: dict[str, dict[str, float]] = {}
        for name in options.sets:
            for variant, ratio in measure(name, options.repeats, with_peers=options.peers).items():
                table.setdefault(variant, {})[name] = ratio
        print_table(threads, options.sets, table)
    torch.set_num_threads(1)
    for name, policy in (("value", clip.value(FAR)), ("norm", clip.norm(FAR))):
        print(f"cost per tensor, {name}: {per_tensor(policy):.0f} ns of CPU")


def measure(name: str, repeats: int, *, with_peers: bool) -> dict[str, float]:
    """Return each variant's median ratio to torch's norm clipping, and the floor in GB/s."""
    parameters, grads = make(name)
    # In the time that threads spin, CPU time says nothing: there the wall is the measure.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    turns = {BASE: lambda: clip_grad_norm_(parameters, FAR), **variants(parameters, grads)}
    if with_peers:
        turns |= peers(parameters)
    slow = {name for name in turns if name.startswith(("reference", *SLOW))}
    restore = restorer(grads)
    seconds: dict[str, dict[int, float]] = {variant: {} for variant in turns}
    for repeat in range(repeats + 1):
        for variant, turn in turns.items():
            if repeat % SELDOM and variant in slow:
                continue
            restore(variant)
            start = clock()
            turn()
            if repeat:  # the first round warms caches, code and allocators
                seconds[variant][repeat] = clock() - start
    base = seconds.pop(BASE)
    ratios = {
        variant: statistics.median(taken / base[repeat] for repeat, taken in rounds.items())
        for variant, rounds in seconds.items()
    }
    size = sum(g.numel() * g.element_size() for g in grads)
    return {
        f"{BASE} (ms)": 1e3 * statistics.median(base.values()),
        **ratios,
        "floor, GB/s read": floor(grads, size),
    }


def variants(parameters: list[torch.nn.Parameter], grads: list[Tensor]) -> dict[str, Turn]:
    """Return what is measured at every step; the limits are such that the names come true."""
    limit = quantile(grads, 0.99)
    norm = float(torch.linalg.vector_norm(torch.stack([g.double().norm() for g in grads])))

    def ours(policy: object, **options: object) -> Turn:
        clipper = gradwatch.Clipper(policy, **options)  # type: ignore[arg-type]  # as given below
        return lambda: clipper.clip_([p.grad for p in parameters], parameters)

    def uncompiled(policy: object) -> Turn:
        clipper = gradwatch.Clipper(policy)  # type: ignore[arg-type]  # as given below
        clipper._used[torch.device("cpu")] = (
            Glance()
        )  # what `auto` takes where nothing was compiled
        return lambda: clipper.clip_([p.grad for p in parameters], parameters)

    return {
        "torch clip_grad_value_": lambda: clip_grad_value_(parameters, FAR),
        "norm().item() per parameter": lambda: [p.grad.norm().item() for p in parameters],
        "ours, value, nothing clipped": ours(clip.value(FAR)),
        "ours, value, 1 % clipped": ours(clip.value(limit)),
        "ours, value, 1/8 histogram every step": ours(clip.value(FAR), histogram_every=1),
        "ours, value, cosine every step": ours(clip.value(FAR), optional=["cosine_previous"]),
        "ours, norm, nothing clipped": ours(clip.norm(FAR)),
        "ours, norm, clipped": ours(clip.norm(norm / 2)),
        "ours, measure only": ours(None),
        "without a compiler, value, nothing clipped": uncompiled(clip.value(FAR)),
        "without a compiler, value, 1 % clipped": uncompiled(clip.value(limit)),
        "reference kernel, value": ours(clip.value(FAR), kernel="reference"),
        "reference operations, value, norm, max_abs and mean": lambda: reference_basics(grads),
        "floor: read once": lambda: [g.sum() for g in grads],
        "floor: read once, then read and write": lambda: (
            [g.sum() for g in grads],
            [g.mul_(1.0) for g in grads],
        ),
    }


def restorer(grads: list[Tensor]) -> Callable[[str], None]:
    """Return what undoes a variant that changes gradients, outside its time."""
    kept = [g.clone() for g in grads]

    def restore(variant: str) -> None:
        if variant.endswith(("% clipped", "norm, clipped")):
            torch._foreach_copy_(grads, kept)

    return restore


def floor(grads: list[Tensor], size: int) -> float:
    """Return the rate at which torch reads these gradients once and keeps only a sum."""
    rates = []
    for _ in range(7):
        start = time.perf_counter()
        for grad in grads:
            grad.sum()
        rates.append(size / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)


def reference_basics(grads: list[Tensor]) -> None:
    """Norm, largest element and mean by the reference's own operations, and the limit; nothing else."""
    size, limit = 1 << 17, torch.tensor(FAR)
    scratch = torch.empty(3, size)
    for grad in grads:
        flat = grad.view(-1)
        for start in range(0, flat.numel(), size):
            piece = flat[start : start + size].unsqueeze(0)
            torch.maximum(torch.minimum(piece, limit, out=piece), -limit, out=piece)
            basics(piece, list(scratch[:, None, : piece.numel()].unbind()))


def per_tensor(policy: clip.Policy) -> float:
    """Return what each further tensor of one element costs, in ns: between 1000 and 2000 of them."""

    def turn(count: int) -> Turn:
        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]
        for parameter in parameters:
            parameter.grad = torch.ones(1)
        clipper = gradwatch.Clipper(policy)
        return lambda: clipper.clip_([p.grad for p in parameters], parameters)

    few, many = turn(1000), turn(2000)
    slopes = []
    for _ in range(210):
        start = time.process_time()
        few()
        middle = time.process_time()
        many()
        slopes.append(time.process_time() - middle - (middle - start))
    return 1e9 * statistics.median(slopes[10:]) / 1000


def print_table(threads: int, sets: list[str], table: dict[str, dict[str, float]]) -> None:
    unit = "CPU time" if threads == 1 else "wall time"
    print(f"\n{threads} thread{'s' * (threads > 1)}, ratio of {unit} to {BASE}\n")
    print("| | " + " | ".join(sets) + " | median |\n|---|" + "---|" * (len(sets) + 1))
    for variant, row in table.items():
        cells = [f"{row[name]:.3g}" if name in row else "" for name in sets]
        plain = variant.startswith((f"{BASE} (ms)", "floor"))
        middle = "" if plain else f"{statistics.median(row.values()):.2f}"
        print(f"| {variant} | " + " | ".join(cells) + f" | {middle} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks clip", description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peers", action="store_true", help="also tensorboard's histograms (slow)")
    return parser.parse_args()
