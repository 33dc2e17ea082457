"""Character models on real text: Python's language reference, in English, as every installation has it."""

import functools
import math
from collections.abc import Callable
from pydoc_data.topics import topics

import torch
from benchmarks.claims.job import Single
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CHARACTERS", "Model", "Transformer", "characters", "letter_entropy"]

CHARACTERS = 96  # newline and printable ASCII
BATCH, LENGTH = 12, 32
EMBEDDING, HIDDEN = 24, 64
WIDTH, LONGEST = 48, 128  # of the transformer
HELD_OUT = 20_000  # characters at the end, which no training sees

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {
    "SGD": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
    "Adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    "AdamW": lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate),
}


class Model(nn.Module):
    """Embedding, one recurrent layer, a linear head."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(CHARACTERS, EMBEDDING)
        self.rnn = cell(EMBEDDING, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CHARACTERS)

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross entropy in bits of each next character of [batch, length + 1]."""
        logits = self.logits(windows[:, :-1])
        nats = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        return nats / math.log(2)

    def logits(self, inputs: Tensor) -> Tensor:
        """Map characters [batch, length] to logits [batch, length, characters]."""
        logits: Tensor = self.head(self.rnn(self.embed(inputs))[0])
        return logits


class Transformer(Model):
    """One pre-norm transformer block in place of the recurrent layer."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.embed = nn.Embedding(CHARACTERS, WIDTH)
        self.place = nn.Embedding(LONGEST, WIDTH)
        self.block = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(WIDTH, CHARACTERS)

    def logits(self, inputs: Tensor) -> Tensor:
        """See :class:`Model`."""
        length = inputs.shape[1]
        hidden = self.embed(inputs) + self.place(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits: Tensor = self.head(self.block(hidden, mask, is_causal=True))
        return logits


def characters(make: Callable[[], Model], optimizer: str, seed: int, rate: float) -> Single:
    """A fresh character model; batches and weights follow from the seed."""
    model = make()
    text = reference()
    train, held_out = text[:-HELD_OUT], text[-HELD_OUT:]
    generator = torch.Generator().manual_seed(2000 + seed)
    offsets = torch.arange(LENGTH + 1)

    def loss() -> Tensor:
        starts = torch.randint(0, len(train) - LENGTH - 1, (BATCH, 1), generator=generator)
        return model.loss(train[starts + offsets])

    def measure() -> dict[str, float]:
        # As long as in training: a transformer knows no places beyond.
        rows = held_out[: len(held_out) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
        return {"score": float(model.loss(rows))}

    return Single(model, OPTIMIZERS[optimizer](list(model.parameters()), rate), loss, measure)


def letter_entropy() -> float:
    """Bits of a character for a model that knows how often each comes, and nothing else."""
    share = torch.bincount(reference()).double() / len(reference())
    return float(-(share * share.clamp_min(1e-12).log2()).sum())


@functools.cache
def reference() -> Tensor:
    """The text as numbers below 96; what is neither newline nor printable ASCII is left out."""
    text = "\n".join(topics[name] for name in sorted(topics))
    table = {"\n": 0} | {chr(code): code - 31 for code in range(32, 127)}
    return torch.tensor([table[c] for c in text if c in table])
