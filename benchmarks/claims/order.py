"""The temporal-order task of Pascanu, Mikolov & Bengio 2013, section 4.1.1, scaled down.

Six symbols; two of a sequence, the first after a tenth to a fifth of it, the second after five to
six tenths, are A or B; the class is which came in which order. All others are distractors.
"""

import copy
import math
from collections.abc import Callable

import torch
from benchmarks.claims.job import Single
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Order", "draw", "orthogonal", "radius", "reach", "remembering", "temporal_order"]

HIDDEN, BATCH, TESTED = 50, 20, 1000

Start = Callable[[nn.RNNBase], None]


class Order(nn.Module):
    """A recurrent layer over one-hot symbols, and a linear head on its last state."""

    def __init__(self, cell: type[nn.RNNBase] = nn.RNN) -> None:
        super().__init__()
        self.rnn = cell(6, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 4)

    def forward(self, symbols: Tensor) -> Tensor:
        """[batch, length] to [batch, 4] logits."""
        states = self.rnn(functional.one_hot(symbols, 6).float())[0]
        logits: Tensor = self.head(states[:, -1])
        return logits


def temporal_order(
    length: int, start: Start, seed: int, rate: float, cell: type[nn.RNNBase] = nn.RNN
) -> Single:
    """A fresh model with plain gradient descent, as in the paper; fresh sequences each step."""
    model = Order(cell)
    start(model.rnn)
    generator = torch.Generator().manual_seed(1000 + seed)
    # The same 1000 sequences for every seed and arm, never drawn in training.
    test = draw(TESTED, length, torch.Generator().manual_seed(7))

    def loss() -> Tensor:
        symbols, classes = draw(BATCH, length, generator)
        return functional.cross_entropy(model(symbols), classes)

    def measure() -> dict[str, float]:
        wrong = float((model(test[0]).argmax(dim=1) != test[1]).float().mean())
        return {"score": wrong, "reach": reach(model, test[0][:100], test[1][:100])}

    return Single(model, torch.optim.SGD(model.parameters(), lr=rate), loss, measure)


def draw(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences [count, length] and their classes [count]."""
    symbols = torch.randint(2, 6, (count, length), generator=generator)
    marks = torch.randint(0, 2, (count, 2), generator=generator)
    rows = torch.arange(count)
    for mark, (low, high) in enumerate(((0.1, 0.2), (0.5, 0.6))):
        at = torch.randint(int(length * low), int(length * high), (count,), generator=generator)
        symbols[rows, at] = marks[:, mark]
    return symbols, 2 * marks[:, 0] + marks[:, 1]


@torch.no_grad()
def radius(size: float, rnn: nn.RNNBase) -> None:
    """Start with normal recurrent weights of this spectral radius, no bias, small input weights."""
    for name, weight in rnn.named_parameters():
        if "bias" in name:
            weight.zero_()
        elif "weight_hh" in name:
            nn.init.normal_(weight, 0, 1 / math.sqrt(HIDDEN))
            weight.mul_(size / float(torch.linalg.eigvals(weight).abs().max()))
        else:
            nn.init.normal_(weight, 0, 0.1)


@torch.no_grad()
def orthogonal(rnn: nn.RNNBase) -> None:
    """Start with an orthogonal recurrent matrix: all its singular values are 1."""
    radius(1.0, rnn)
    for name, weight in rnn.named_parameters():
        if "weight_hh" in name:
            nn.init.orthogonal_(weight)


@torch.no_grad()
def remembering(rnn: nn.RNNBase) -> None:
    """Start an LSTM with its forget gates open: their bias is 2 (once in each of torch's two)."""
    for name, bias in rnn.named_parameters():
        if "bias" in name:
            bias.zero_()
            bias[HIDDEN : 2 * HIDDEN] = 1.0


def reach(model: Order, symbols: Tensor, classes: Tensor) -> float:
    """Norm of the loss' gradient at the first time step over that at the last, as log10, at least -30."""
    inputs = functional.one_hot(symbols, 6).double().requires_grad_()
    double = copy.deepcopy(model).double()
    with torch.enable_grad():
        loss = functional.cross_entropy(double.head(double.rnn(inputs)[0][:, -1]), classes)
        gradient = torch.autograd.grad(loss, inputs)[0]
    first, last = (float(gradient[:, at].norm()) for at in (0, -1))
    if not (math.isfinite(first) and last > 0):
        return -30.0
    return max(-30.0, math.log10(max(first, 1e-300) / last))
