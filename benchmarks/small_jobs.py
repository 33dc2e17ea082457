"""Small real trainings, a few milliseconds a step: what thresholds and claims are tried out on.

Three jobs are calm (nothing to prevent), the others have a learning rate that is too high, a task
with cliffs, or a fault. All data come from fixed generators: two trainings with one seed see the
same batches, whatever clips them.
"""

from __future__ import annotations

import functools
import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.recorded_jobs import JOBS as RECORDED
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own examples use

__all__ = ["SMALL_JOBS", "SmallJob", "Training"]


@dataclass(frozen=True)
class Training:
    """One training under way.

    Attributes:
        parts: Name to model and optimizer; a clipping rule has to be put on each.
        advance: Takes one step, given its number, and returns the loss before it.
    """

    parts: dict[str, tuple[nn.Module, torch.optim.Optimizer]]
    advance: Callable[[int], Tensor]


@dataclass(frozen=True)
class SmallJob:
    """How a training is made.

    Attributes:
        make: Seed, steps and learning rate to a training.
        rate: The learning rate it is meant to be run at.
        calm: Nothing goes wrong without clipping.
    """

    make: Callable[[int, int, float], Training]
    rate: float
    calm: bool = False


def single(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    factor: Callable[[int], float] = lambda _: 1.0,
) -> Training:
    """Train one model; the learning rate at a step is the first one times ``factor(step)``."""
    rate = optimizer.param_groups[0]["lr"]

    def advance(step: int) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(step)
        optimizer.zero_grad()
        found = loss(step)
        found.backward()
        optimizer.step()
        return found.detach()

    return Training({"model": (model, optimizer)}, advance)


def temporal_order(seed: int, steps: int, rate: float) -> Training:
    """Two marked symbols far apart decide the class (Pascanu et al. 2013, section 4.1), length 16."""
    del steps
    length, batch = 16, 20
    rnn, out = nn.RNN(6, 40, batch_first=True), nn.Linear(40, 4)
    nn.init.normal_(rnn.weight_hh_l0, 0, 0.12)
    model = nn.ModuleList([rnn, out])
    generator = torch.Generator().manual_seed(1000 + seed)
    rows = torch.arange(batch)

    def loss(step: int) -> Tensor:
        del step
        symbols = torch.randint(2, 6, (batch, length), generator=generator)
        marks = torch.randint(0, 2, (batch, 2), generator=generator)
        symbols[rows, torch.randint(1, 3, (batch,), generator=generator)] = marks[:, 0]
        symbols[rows, torch.randint(8, 10, (batch,), generator=generator)] = marks[:, 1]
        hidden = rnn(F.one_hot(symbols, 6).float())[0][:, -1]
        return F.cross_entropy(out(hidden), 2 * marks[:, 0] + marks[:, 1])

    return single(model, torch.optim.SGD(model.parameters(), rate, momentum=0.9), loss)


def adding(seed: int, steps: int, rate: float) -> Training:
    """The sum of two marked numbers in a sequence of 16 (Hochreiter and Schmidhuber 1997)."""
    del steps
    length, batch = 16, 20
    rnn, out = nn.RNN(2, 40, batch_first=True), nn.Linear(40, 1)
    nn.init.orthogonal_(rnn.weight_hh_l0)
    model = nn.ModuleList([rnn, out])
    generator = torch.Generator().manual_seed(2000 + seed)
    rows = torch.arange(batch)

    def loss(step: int) -> Tensor:
        del step
        numbers = torch.rand(batch, length, generator=generator)
        marks = torch.zeros(batch, length)
        for low, high in ((0, 4), (5, 10)):
            marks[rows, torch.randint(low, high, (batch,), generator=generator)] = 1
        hidden = rnn(torch.stack([numbers, marks], dim=2))[0][:, -1]
        return F.mse_loss(out(hidden)[:, 0], (numbers * marks).sum(1))

    return single(model, torch.optim.SGD(model.parameters(), rate, momentum=0.9), loss)


def char_lstm(seed: int, steps: int, rate: float, fault: float = 1.0) -> Training:
    """A character LSTM on Python sources; half way the rate is ``fault`` times higher for 20 steps."""
    embed, lstm, out = nn.Embedding(96, 24), nn.LSTM(24, 48, batch_first=True), nn.Linear(48, 96)
    model = nn.ModuleList([embed, lstm, out])
    batches = characters(3000 + seed, 12, 16)

    def loss(step: int) -> Tensor:
        del step
        window = batches()
        scores = out(lstm(embed(window[:, :-1]))[0])
        return F.cross_entropy(scores.flatten(0, 1), window[:, 1:].flatten())

    inside = range(steps // 2, steps // 2 + 20)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    return single(model, optimizer, loss, lambda step: fault if step in inside else 1.0)


def char_gru(seed: int, steps: int, rate: float) -> Training:
    """A character GRU under SGD with momentum."""
    del steps
    embed, gru, out = nn.Embedding(96, 24), nn.GRU(24, 48, batch_first=True), nn.Linear(48, 96)
    model = nn.ModuleList([embed, gru, out])
    batches = characters(4000 + seed, 12, 16)

    def loss(step: int) -> Tensor:
        del step
        window = batches()
        scores = out(gru(embed(window[:, :-1]))[0])
        return F.cross_entropy(scores.flatten(0, 1), window[:, 1:].flatten())

    return single(model, torch.optim.SGD(model.parameters(), rate, momentum=0.9), loss)


class Decoder(nn.Module):
    """A causal transformer block of width 48 behind layer norms."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(96, 48), nn.Parameter(0.02 * torch.randn(length, 48))
        self.before_mix, self.before_feed = nn.LayerNorm(48), nn.LayerNorm(48)
        self.mix, self.join = nn.Linear(48, 144), nn.Linear(48, 48)
        self.feed = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
        self.out = nn.Linear(48, 96)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length] to scores [batch, length, 96]."""
        h = self.embed(tokens) + self.place
        heads = self.mix(self.before_mix(h)).unflatten(2, (3, 4, 12)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        h = h + self.join(mixed.transpose(1, 2).flatten(2))
        return self.out(h + self.feed(self.before_feed(h)))


def transformer(seed: int, steps: int, rate: float) -> Training:
    """A character transformer under AdamW with a warm-up of 50 steps."""
    del steps
    model = Decoder(16)
    batches = characters(5000 + seed, 12, 16)

    def loss(step: int) -> Tensor:
        del step
        window = batches()
        return F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())

    optimizer = torch.optim.AdamW(model.parameters(), rate)
    return single(model, optimizer, loss, lambda step: min(1.0, (step + 1) / 51))


def recorded(seed: int, steps: int, rate: float, name: str) -> Training:
    """One of the small jobs that traces are recorded from."""
    job = RECORDED[name]
    model = job.model()
    optimizer = job.optimizer(list(model.parameters()))
    for group in optimizer.param_groups:
        group["lr"] = rate
    generator = torch.Generator().manual_seed(6000 + seed)

    def loss(step: int) -> Tensor:
        inputs, targets = job.batch(step, generator)
        return F.cross_entropy(model(inputs), targets)

    return single(model, optimizer, loss, lambda step: job.schedule(step, steps))


def gan(seed: int, steps: int, rate: float) -> Training:
    """Eight Gaussians on a circle; the loss is the energy distance of 256 samples to the target."""
    del steps

    def net(inputs: int, outputs: int) -> nn.Sequential:
        layers = [nn.Linear(inputs, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, nn.Linear(48, outputs))

    maker, judge = net(8, 2), net(2, 1)
    of_maker = torch.optim.Adam(maker.parameters(), rate, betas=(0.5, 0.9))
    of_judge = torch.optim.Adam(judge.parameters(), rate, betas=(0.5, 0.9))
    generator = torch.Generator().manual_seed(7000 + seed)
    noise, target = torch.randn(256, 8, generator=generator), ring(256, generator)
    within = torch.cdist(target, target).mean()

    def advance(step: int) -> Tensor:
        del step
        with torch.no_grad():
            made = maker(noise)
            apart = 2 * torch.cdist(made, target).mean() - torch.cdist(made, made).mean() - within
        false = maker(torch.randn(64, 8, generator=generator))
        of_judge.zero_grad()
        told = (
            F.softplus(-judge(ring(64, generator))).mean()
            + F.softplus(judge(false.detach())).mean()
        )
        told.backward()
        of_judge.step()
        of_maker.zero_grad()
        F.softplus(-judge(false)).mean().backward()
        of_maker.step()
        return apart

    return Training({"maker": (maker, of_maker), "judge": (judge, of_judge)}, advance)


def ring(n: int, generator: torch.Generator) -> Tensor:
    """[n, 2] samples of eight narrow Gaussians on a circle of radius 2."""
    angle = torch.randint(0, 8, (n,), generator=generator) * (math.pi / 4)
    centre = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centre + 0.05 * torch.randn(n, 2, generator=generator)


def characters(seed: int, batch: int, length: int) -> Callable[[], Tensor]:
    """Draws [batch, length + 1] windows of the corpus."""
    text, generator = corpus(), torch.Generator().manual_seed(seed)
    offsets = torch.arange(length + 1)

    def draw() -> Tensor:
        at = torch.randint(0, len(text) - length - 1, (batch,), generator=generator)
        return text[at[:, None] + offsets]

    return draw


@functools.cache
def corpus() -> Tensor:
    """Printable ASCII of a few sources of the standard library, as numbers below 96."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((folder / f).read_text() for f in ("argparse.py", "ast.py", "cmd.py", "csv.py"))
    return torch.tensor([ord(c) - 31 if 32 <= ord(c) < 127 else 0 for c in text])


SMALL_JOBS: dict[str, SmallJob] = {
    "tanh RNN, temporal order": SmallJob(temporal_order, 0.1),
    "tanh RNN, adding": SmallJob(adding, 0.05),
    "char LSTM, rate x16": SmallJob(char_lstm, 8.0),
    "char LSTM, rate x30 for 20 steps": SmallJob(functools.partial(char_lstm, fault=30.0), 0.5),
    "char GRU, rate x2": SmallJob(char_gru, 1.0),
    "GAN": SmallJob(gan, 5e-3),
    "char transformer, AdamW": SmallJob(transformer, 2e-3, calm=True),
    "residual MLP, AdamW": SmallJob(
        functools.partial(recorded, name="residual_adamw"), 1e-3, calm=True
    ),
    "CNN, SGD": SmallJob(functools.partial(recorded, name="cnn_sgd"), 0.03, calm=True),
}
