"""Four more small trainings, recorded once when the detectors were done."""

from __future__ import annotations

import torch
from benchmarks.fault_kinds import Place
from benchmarks.recorded_jobs import Job, constant, warm_cosine
from torch import Tensor, nn

import gradwatch

__all__ = ["FINAL"]


class Variational(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014), [batch, 20] to the terms of its bound."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.stats = nn.Linear(20, 40), nn.Linear(40, 8)
        self.dec, self.out = nn.Linear(4, 40), nn.Linear(40, 20)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction and divergence, [batch, 21]."""
        mean, log_var = self.stats(torch.relu(self.enc(x))).chunk(2, dim=-1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        divergence = 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(-1, keepdim=True)
        return torch.cat([self.out(torch.relu(self.dec(z))), divergence], dim=-1)


class Denoiser(nn.Module):
    """A small U-net over [batch, 1, 8, 8]: says what noise was added."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 8, 3, padding=1)
        self.down2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The noise, [batch, 64]."""
        h = torch.relu(self.down1(x))
        low = torch.relu(self.norm(self.down2(h)))
        return self.out(torch.cat([h, torch.relu(self.up(low))], dim=1)).flatten(1)


class Causal(nn.Module):
    """Dilated causal convolutions (van den Oord et al. 2016) over [batch, 20] symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.layers = nn.ModuleList(nn.Conv1d(16, 16, 2, dilation=2**i) for i in range(4))
        self.out = nn.Conv1d(16, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 12, 20]."""
        h = self.embed(x).mT
        for i, layer in enumerate(self.layers):
            h = h + torch.tanh(layer(nn.functional.pad(h, (2**i, 0))))
        return self.out(h)


class Ranker(nn.Module):
    """Scores two items of which the first is the better one, [batch, 2, 12] to margins."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(12, 64)
        self.mid, self.out = nn.Linear(64, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Margins [batch]."""
        h = nn.functional.silu(self.mid(nn.functional.silu(self.wide(x))))
        scores = self.out(h).squeeze(-1)
        return scores[:, 0] - scores[:, 1]


_MIX = torch.randn(20, 20, generator=torch.Generator().manual_seed(11))


def _mixture(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    centre = _MIX[torch.randint(6, (32,), generator=generator)]
    x = centre + 0.3 * torch.randn(32, 20, generator=generator)
    return x, x


def _bound(out: Tensor, y: Tensor) -> Tensor:
    return ((out[:, :20] - y) ** 2).sum(-1).mean() + 0.5 * out[:, 20].mean()


def _noised(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shift = torch.rand(16, 1, 1, 1, generator=generator) * 6
    grid = torch.arange(8.0)
    clean = torch.sin(grid.view(1, 1, 8, 1) + shift) * torch.cos(grid.view(1, 1, 1, 8))
    noise = 0.7 * torch.randn(16, 1, 8, 8, generator=generator)
    return clean + noise, noise.flatten(1)


def _texts(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Symbols that depend on the two before; the texts become longer."""
    length = 10 + min(10, step // 40)
    x = torch.randint(12, (16, length + 1), generator=generator)
    for at in range(2, length + 1):
        follows = (x[:, at - 1] * 5 + x[:, at - 2]) % 12
        kept = torch.rand(16, generator=generator) < 0.8
        x[:, at] = torch.where(kept, follows, x[:, at])
    return x[:, :-1], x[:, 1:]


def _pairs(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 2, 12, generator=generator)
    worth = torch.tanh(x @ _MIX[:12, :3]).sum(-1) + 0.3 * torch.randn(32, 2, generator=generator)
    order = worth.argsort(1, descending=True).unsqueeze(-1).expand(-1, -1, 12)
    return x.gather(1, order), torch.ones(32)


def _hinge(margins: Tensor, y: Tensor) -> Tensor:
    return torch.relu(1 - y * margins).mean()


FINAL: dict[str, Job] = {
    "variational_adam": Job(
        Variational, _mixture, lambda p: torch.optim.Adam(p, lr=2e-3), constant,
        Place("dec.weight", "dec.bias", -20.0, "dec.weight", "enc.weight"), criterion=_bound,
    ),
    "denoiser_nesterov": Job(
        Denoiser, _noised, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
        warm_cosine,
        Place("down2.weight", "down1.bias", -20.0, "out.weight", "down1.weight", 8.0),
        criterion=nn.functional.mse_loss,
    ),
    "causal_adamw": Job(
        Causal, _texts, lambda p: torch.optim.AdamW(p, lr=3e-3), warm_cosine,
        Place("layers.1.weight", "layers.2.bias", 20.0, "layers.2.weight", "embed.weight"),
        clip=gradwatch.clip.value(0.05),
    ),
    "ranker_sgd": Job(
        Ranker, _pairs, lambda p: torch.optim.SGD(p, lr=0.1), constant,
        Place("mid.weight", "wide.bias", -30.0, "out.weight", "wide.weight"), criterion=_hinge,
    ),
}  # fmt: skip
