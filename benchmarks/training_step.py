"""Clipping and measuring as a share of a real training step, beside what else people do there.

An LSTM and a small GPT train on random tokens. Every variant's segment (from the end of `backward` to
the beginning of `optimizer.step`) is timed in CPU time of the process; variants take turns, step by
step, on the same model. The share is of the step without any segment. Trackers that hook into `backward`
(wandb.watch) are measured by `python -m benchmarks overhead`. Options: --steps 60, --threads 1.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.machine import cpu_name
from torch import Tensor, nn

import gradwatch
from gradwatch import clip

VOCABULARY, LENGTH, BATCH = 512, 64, 16
Segment = Callable[[], object]


class Lstm(nn.Module):
    """Two layers of 256: a million parameters in 11 tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 128)
        self.rnn = nn.LSTM(128, 256, 2, batch_first=True)
        self.out = nn.Linear(256, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores of the next token."""
        scores: Tensor = self.out(self.rnn(self.embed(tokens))[0])
        return scores


class Gpt(nn.Module):
    """Four layers of 128: 0.9 million parameters in 52 tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 128)
        self.place = nn.Parameter(torch.zeros(LENGTH, 128))
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.out = nn.Linear(128, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores of the next token."""
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        scores: Tensor = self.out(
            self.layers(self.embed(tokens) + self.place, mask, is_causal=True)
        )
        return scores


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    print(f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}")
    for kind in (Lstm, Gpt):
        torch.manual_seed(0)
        print_table(kind.__name__, *measure(kind(), options.steps))


def measure(model: nn.Module, steps: int) -> tuple[int, float, dict[str, float]]:
    """Return the number of tensors, milliseconds of a bare step, and milliseconds of each segment."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-3, fused=True)
    taken: dict[str, list[float]] = {}
    bare = []
    for step in range((steps + 1) * len(all_segments := segments(parameters))):
        name = list(all_segments)[step % len(all_segments)]
        start = time.process_time()
        tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
        scores = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        before = time.process_time()
        all_segments[name]()
        after = time.process_time()
        optimizer.step()
        optimizer.zero_grad()
        if step >= len(all_segments):  # the first round warms caches
            taken.setdefault(name, []).append(1e3 * (after - before))
            bare.append(1e3 * (time.process_time() - after + before - start))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return len(parameters), statistics.median(bare), medians


def segments(parameters: list[nn.Parameter]) -> dict[str, Segment]:
    """Return what may stand between `backward` and `optimizer.step`."""

    def ours(policy: Any, **options: Any) -> Segment:
        clipper = gradwatch.Clipper(policy, **options)
        return lambda: clipper.clip_([p.grad for p in parameters], parameters)

    def by_hand() -> None:
        for p in parameters:
            g = p.grad
            if g is not None:
                _ = g.norm().item(), g.abs().max().item(), g.mean().item(), g.std().item()

    found: dict[str, Segment] = {
        "torch clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(parameters, 1.0),
        "torch, and four statistics read per tensor": lambda: (
            nn.utils.clip_grad_norm_(parameters, 1.0),
            by_hand(),
        ),
        "ours, value": ours(clip.value(1e-3)),
        "ours, norm": ours(clip.norm(1.0)),
        "ours as watch() does it: value, cosine, histogram every 10": ours(
            clip.value(1e-3), optional=["cosine_previous"], histogram_every=10
        ),
    }
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- only if it is there
    except ImportError:
        print("tensorboard is not installed: its histograms are not measured")
        return found
    writer = SummaryWriter(tempfile.mkdtemp())  # type: ignore[no-untyped-call]  # not annotated
    found["tensorboard add_histogram of every tensor"] = lambda: [
        writer.add_histogram(str(i), p.grad, 0)  # type: ignore[no-untyped-call]  # not annotated
        for i, p in enumerate(parameters)
    ]
    return found


def print_table(model: str, tensors: int, bare: float, medians: dict[str, float]) -> None:
    print(f"\n{model}, {tensors} tensors, a step without any of these: {bare:.1f} ms of CPU\n")
    print("| segment | ms | share of a step |\n|---|---|---|")
    for name, taken in medians.items():
        print(f"| {name} | {taken:.2f} | {100 * taken / bare:.2f} % |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks training_step", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="per variant")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()
