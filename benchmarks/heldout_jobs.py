"""Small trainings kept back: no detector was developed on their recordings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from benchmarks.fault_kinds import Place
from benchmarks.recorded_jobs import Job, constant, warm_cosine
from torch import Tensor, nn

import gradwatch

__all__ = ["HELD_OUT"]


class Graph(nn.Module):
    """Two graph convolutions on one fixed graph of 12 nodes (Kipf and Welling 2017), [batch, 12, 5]."""

    def __init__(self) -> None:
        super().__init__()
        edges = torch.rand(12, 12, generator=torch.Generator().manual_seed(5)) < 0.25
        joined = (edges | edges.mT | torch.eye(12, dtype=torch.bool)).float()
        self.register_buffer("mixing", joined / joined.sum(1, keepdim=True))
        self.g1, self.g2, self.out = nn.Linear(5, 24), nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 4]."""
        h = torch.relu(self.g1(self.mixing @ x))
        return self.out(torch.relu(self.g2(self.mixing @ h)).mean(1))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Keeps its shape [batch, time, width]; attends to what came before only."""
        q, k, v = self.qkv(self.n1(h)).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.proj(mixed)
        return h + self.fc2(torch.relu(self.fc(self.n2(h))))


class Former(nn.Module):
    """Two transformer blocks that continue arithmetic sequences modulo 17: [batch, time] ids."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, width)
        self.place = nn.Parameter(0.02 * torch.randn(12, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.out = nn.Linear(width, 17)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 17, time]."""
        h = self.embed(x) + self.place[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.out(h).mT


class Autoencoder(nn.Sequential):
    """Eight tanh layers with a narrow middle, [batch, 24] to itself."""

    def __init__(self) -> None:
        sizes = (24, 20, 16, 12, 6, 12, 16, 20, 24)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers += [nn.Linear(a, b)] + ([nn.Tanh()] if i < 7 else [])
        super().__init__(*layers)


class Counter(nn.Module):
    """An LSTM that adds up marked numbers of a sequence, [batch, time, 2] to [batch]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(2, 20, batch_first=True), nn.Linear(20, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The sums, [batch]."""
        return self.out(self.rnn(x)[0][:, -1]).squeeze(-1)


class Grouped(nn.Module):
    """Three convolutions behind group norms on [batch, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.n1, self.n2 = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
        self.c3 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.out = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 5]."""
        h = torch.relu(self.n1(self.c1(x)))
        return self.out(torch.relu(self.c3(torch.relu(self.n2(self.c2(h))))).flatten(1))


class Experts(nn.Module):
    """Four experts of which one is asked per example (Fedus et al. 2022), [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.router = nn.Linear(10, 24), nn.Linear(24, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)) for _ in range(4)
        )
        self.out = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 6]."""
        h = torch.relu(self.inp(x))
        # Noise keeps every expert in use, as load balancing does.
        scores = self.router(h)
        odds = (scores + 1.5 * torch.randn_like(scores)).softmax(-1)
        weight, chosen = odds.max(-1, keepdim=True)
        answers = torch.stack([expert(h) for expert in self.experts], dim=1)
        one = answers.gather(1, chosen.unsqueeze(-1).expand(-1, 1, 24)).squeeze(1)
        return self.out(h + weight * one)


class Policy(nn.Module):
    """REINFORCE on a bandit with contexts: the loss is a noisy estimate, [batch, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 5] of the actions."""
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023)."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - no job here has a closure
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.add_((first * kept + (1 - first) * p.grad).sign(), alpha=-group["lr"])
                kept.lerp_(p.grad, 1 - second)


_KEY = torch.randn(24, 24, generator=torch.Generator().manual_seed(7))


def _nodes(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 12, 5, generator=generator)
    return x, (3 * x.mean(1) @ _KEY[:5, :4] + x[:, 0] @ _KEY[5:10, :4]).argmax(1)


def _progressions(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    start, by = torch.randint(17, (2, 16, 1), generator=generator)
    line = (start + by * torch.arange(13)) % 17
    return line[:, :12], line[:, 1:]


def _manifold(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.tanh(torch.randn(32, 4, generator=generator) @ _KEY[:4])
    return x, x


def _marked(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    time = 8 + min(12, step // 40)
    x = torch.rand(16, time, 2, generator=generator)
    x[..., 1] = (x[..., 1] < 0.3).float()
    return x, x.prod(-1).sum(-1)


def _epochs_of_images(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two hundred batches again and again."""
    del generator
    own = torch.Generator().manual_seed(step % 200)
    y = torch.randint(5, (20,), generator=own)
    waves = torch.sin(torch.arange(64).view(1, 64) * (0.15 + 0.2 * y.view(-1, 1)))
    x = waves + 2.0 * torch.randn(20, 64, generator=own)
    return x.view(-1, 1, 8, 8), y


def _clusters(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 10, generator=generator)
    return x, (torch.sin(2 * x) @ _KEY[:10, :6]).argmax(1)


def _contexts(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 6, generator=generator)
    return x, torch.cat([x @ _KEY[:6, :5], torch.rand(64, 1, generator=generator)], dim=1)


def _reinforce(logits: Tensor, y: Tensor) -> Tensor:
    """Minus log odds of an action taken at random, times how much better than usual it was."""
    odds = logits.detach().softmax(-1)
    action = (odds.cumsum(-1) < y[:, 5:]).sum(-1, keepdim=True).clamp(max=4)
    reward = y[:, :5].gather(1, action).squeeze(1)
    advantage = reward - (odds * y[:, :5]).sum(-1)
    return -(advantage * logits.log_softmax(-1).gather(1, action).squeeze(1)).mean()


def _decay(step: int, _steps: int) -> float:
    return 1 / math.sqrt(1 + step / 50)


HELD_OUT: dict[str, Job] = {
    "graph_rmsprop": Job(
        Graph, _nodes, lambda p: torch.optim.RMSprop(p, lr=2e-3), constant,
        Place("g2.weight", "g2.bias", -20.0, "g2.weight", "g1.weight"),
    ),
    "former_bf16": Job(
        Former, _progressions, lambda p: torch.optim.AdamW(p, lr=2e-3), warm_cosine,
        Place("blocks.0.qkv.weight", "blocks.1.fc.bias", -20.0, "blocks.1.qkv.weight", "embed.weight"),
        dtype=torch.bfloat16,
    ),
    "autoencoder_adam": Job(
        Autoencoder, _manifold, lambda p: torch.optim.Adam(p, lr=2e-3), constant,
        Place("4.weight", "4.bias", 20.0, "8.weight", "0.weight"),
        criterion=nn.functional.mse_loss, deep=True,
    ),
    "counter_clipped": Job(
        Counter, _marked, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), constant,
        Place("rnn.weight_ih_l0", "rnn.bias_ih_l0", 30.0, "out.weight", "rnn.weight_ih_l0", 8.0),
        criterion=nn.functional.mse_loss, clip=gradwatch.clip.norm(1.0),
    ),
    "grouped_lion": Job(
        Grouped, _epochs_of_images, lambda p: Lion(p, lr=5e-4), _decay,
        Place("c2.weight", "c3.bias", -20.0, "c3.weight", "c1.weight"),
    ),
    "experts_adam": Job(
        Experts, _clusters, lambda p: torch.optim.Adam(p, lr=2e-3), warm_cosine,
        Place("inp.weight", "inp.bias", -20.0, "out.weight", "inp.weight"),
    ),
    "policy_sgd": Job(
        Policy, _contexts, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), constant,
        Place("b.weight", "a.bias", 20.0, "out.weight", "a.weight"), criterion=_reinforce,
    ),
    "graph_fp16": Job(
        Graph, _nodes, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), warm_cosine,
        Place("g2.weight", "g1.bias", -20.0, "out.weight", "g1.weight", 8.0), scaler=True,
    ),
}  # fmt: skip
