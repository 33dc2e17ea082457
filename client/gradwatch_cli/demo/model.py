"""The model: a two-layer LSTM that predicts the next character."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CharacterModel", "bits_per_character"]


class CharacterModel(nn.Module):
    """Embedding, two LSTM layers, a linear head: about a million parameters at the default size."""

    def __init__(self, characters: int, *, embedding: int = 128, hidden: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, embedding)
        self.rnn = nn.LSTM(embedding, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map characters [batch, length] to logits [batch, length, characters]."""
        hidden, _ = self.rnn(self.embed(inputs))
        logits: Tensor = self.head(hidden)
        return logits

    def loss(self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean cross entropy in nats, each row of the batch weighted by ``weights`` [batch]."""
        losses = functional.cross_entropy(
            self(inputs).flatten(0, 1), targets.flatten(), reduction="none"
        )
        if weights is None:
            return losses.mean()
        return (losses.view_as(targets) * weights[:, None]).mean()


@torch.no_grad()
def bits_per_character(model: CharacterModel, text: Tensor, *, windows: int = 64) -> float:
    """Held-out cross entropy in bits: what one character costs to write down with this model.

    A model that knows nothing pays log2(96) = 6.6 bits. NaN when the weights are not finite.
    """
    length = min(256, len(text) // windows - 1)
    rows = text[: windows * (length + 1)].view(windows, length + 1)
    return float(model.loss(rows[:, :-1], rows[:, 1:])) / math.log(2)
