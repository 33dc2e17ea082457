"""Clipping with every statistic, beside torch's clipping and what else people do at each step.

Variants take turns in one process; each turn's CPU time is divided by that of `clip_grad_norm_` in the
same turn, and the median of these ratios is shown. A ratio below 1 is cheaper than torch's clipping
alone. Options: --sets lstm resnet gpt2 tiny, --threads 1 2, --repeats 15, --peers.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from benchmarks.gradient_sets import SETS, make, quantile
from benchmarks.machine import cpu_name
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import gradwatch
from gradwatch import clip
from gradwatch.errors import KernelError
from gradwatch.kernels import Glance, library

BASE = "torch clip_grad_norm_"
FAR = 1e9  # a limit that nothing reaches
SELDOM = 5  # rounds between two turns of what takes many times longer

Turn = Callable[[], object]


def main() -> None:
    options = _options()
    fast = library.load_cpu()
    kernel = f"none ({fast})" if isinstance(fast, KernelError) else "compiled"
    print(
        f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}, kernel {kernel}"
    )
    for threads in options.threads:
        torch.set_num_threads(threads)
        table: dict[str, dict[str, float]] = {}
        for name in options.sets:
            for variant, ratio in measure(name, options.repeats, peers=options.peers).items():
                table.setdefault(variant, {})[name] = ratio
        print_table(threads, options.sets, table)


def measure(name: str, repeats: int, *, peers: bool) -> dict[str, float]:
    """Return each variant's median ratio to torch's norm clipping, and the floor in GB/s."""
    parameters, grads = make(name)
    # In the time that threads spin, CPU time says nothing: there the wall is the measure.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    turns = {BASE: lambda: clip_grad_norm_(parameters, FAR), **variants(parameters, grads)}
    if peers:
        turns |= slow_peers(parameters)
    slow = {name for name in turns if name.startswith(("reference", "tensorboard"))}
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


def slow_peers(parameters: list[torch.nn.Parameter]) -> dict[str, Turn]:
    """Return the histograms that trackers take at every logged step, where they are installed."""
    found: dict[str, Turn] = {}
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- only if it is there
    except ImportError:
        print("tensorboard is not installed: not measured")
    else:
        writer = SummaryWriter("/tmp/gradwatch-benchmark-tensorboard")  # noqa: S108 -- scratch
        found["tensorboard add_histogram"] = lambda: [
            writer.add_histogram(str(i), p.grad, 0) for i, p in enumerate(parameters)
        ]
    return found


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
