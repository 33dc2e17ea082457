"""More small trainings whose recordings detectors may be developed on."""

from __future__ import annotations

import torch
from benchmarks.fault_kinds import Place
from benchmarks.recorded_jobs import Job, constant, warm_cosine
from torch import Tensor, nn

__all__ = ["SEEN"]


class Mixer(nn.Module):
    """MLP-Mixer over [batch, 8 patches, 6] (Tolstikhin et al. 2021)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.inp = nn.Linear(6, width)
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.channels = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))
        self.out = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 6]."""
        h = self.inp(x)
        h = h + self.tokens(self.n1(h).mT).mT
        h = h + self.channels(self.n2(h))
        return self.out(h.mean(1))


class Translator(nn.Module):
    """GRU encoder and decoder: says a sequence of 10 symbols backwards, [batch, 7] to [batch, 10, 7]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 12)
        self.encoder = nn.GRU(12, width, batch_first=True)
        self.decoder = nn.GRU(12, width, batch_first=True)
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10, 7]; the decoder is given the answer so far."""
        h = self.encoder(self.embed(x))[1]
        answer = x.flip(1)
        told = torch.cat([torch.zeros_like(answer[:, :1]), answer[:, :-1]], dim=1)
        return self.out(self.decoder(self.embed(told), h)[0]).mT


class Words(nn.Module):
    """Skip-gram with negative sampling over 200 words, most of them rare: [batch, 7] ids."""

    def __init__(self) -> None:
        super().__init__()
        self.centre, self.context = nn.Embedding(200, 16), nn.Embedding(200, 16)
        nn.init.uniform_(self.context.weight, -0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [batch, 6] of a word with one neighbour and five others."""
        return (self.centre(x[:, :1]) * self.context(x[:, 1:])).sum(-1)


class Pair(nn.Module):
    """Two views of a batch to unit vectors, compared with one another (SimCLR's loss)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.out = nn.Linear(48, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Similarities [batch, batch] of x[:, 0] and x[:, 1]."""
        a, b = (nn.functional.normalize(self.out(self.net(x[:, i])), dim=-1) for i in (0, 1))
        return a @ b.mT / 0.2


class Value(nn.Module):
    """State values learned from their own predictions: the target moves with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def value(self, s: Tensor) -> Tensor:
        """Values [batch] of states [batch, 6]."""
        return self.out(torch.tanh(self.b(torch.tanh(self.a(s))))).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Temporal difference [batch] of x[:, 0] to x[:, 1] plus its reward, in x[:, 0, 0]."""
        after = self.value(x[:, 1]).detach()
        return self.value(x[:, 0]) - 0.9 * after - x[:, 0, 0] * x[:, 0, 1]


_PATCHES = torch.randn(6, 6, generator=torch.Generator().manual_seed(3))


def _patches(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 8, 6, generator=generator)
    return x, ((x.amax(1) - 1.42) @ _PATCHES).argmax(1)


def _rare(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Six classes of which two make up nearly everything: most batches are easy, some are not."""
    x = torch.randn(24, 8, 6, generator=generator)
    scores = (x.amax(1) - 1.42) @ _PATCHES
    return x, (scores + torch.tensor([9.0, 2, -9, -9, -9, -9])).argmax(1)


def _symbols(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences that grow from 3 to 7."""
    x = torch.randint(1, 10, (24, 3 + min(4, step // 80)), generator=generator)
    return x, x.flip(1)


def _neighbours(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Neighbours share their number's last digit; rare words are as rare as Zipf says."""
    odds = 1 / torch.arange(1, 201, dtype=torch.float32)
    words = torch.multinomial(odds.expand(32, -1), 7, generator=generator)
    words[:, 1] = (words[:, 0] + 10 * torch.randint(1, 19, (32,), generator=generator)) % 200
    return words, torch.tensor([1.0, 0, 0, 0, 0, 0]).expand(32, 6).contiguous()


def _views(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 1, 20, generator=generator)
    return x + 0.5 * torch.randn(24, 2, 20, generator=generator), torch.arange(24)


def _walk(_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    state = torch.randn(24, 1, 6, generator=generator)
    moved = 0.9 * state + 0.3 * torch.randn(24, 1, 6, generator=generator)
    return torch.cat([state, moved], dim=1), torch.zeros(24)


SEEN: dict[str, Job] = {
    "mixer_adamw": Job(
        Mixer, _patches, lambda p: torch.optim.AdamW(p, lr=2e-3), warm_cosine,
        Place("channels.0.weight", "channels.0.bias", -20.0, "channels.0.weight", "inp.weight"),
    ),
    "rare_rmsprop": Job(
        Mixer, _rare, lambda p: torch.optim.RMSprop(p, lr=2e-3), constant,
        Place("channels.0.weight", "channels.0.bias", -20.0, "channels.0.weight", "inp.weight"),
    ),
    "translator_adam": Job(
        Translator, _symbols, lambda p: torch.optim.Adam(p, lr=3e-3), constant,
        Place("encoder.weight_ih_l0", "decoder.bias_ih_l0", 30.0, "decoder.weight_ih_l0", "embed.weight"),
    ),
    "words_adagrad": Job(
        Words, _neighbours, lambda p: torch.optim.Adagrad(p, lr=0.1), constant,
        Place("centre.weight", "", 0.0, "context.weight", "centre.weight"),
        criterion=nn.functional.binary_cross_entropy_with_logits,
    ),
    "pair_sgd": Job(
        Pair, _views, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), constant,
        Place("net.2.weight", "net.0.bias", -20.0, "net.2.weight", "net.0.weight"),
    ),
    "value_rmsprop": Job(
        Value, _walk, lambda p: torch.optim.RMSprop(p, lr=1e-3), constant,
        Place("b.weight", "a.bias", 20.0, "out.weight", "a.weight"),
        criterion=nn.functional.smooth_l1_loss,
    ),
}  # fmt: skip
