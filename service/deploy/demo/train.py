"""A job for looking at: a small LSTM that trains without end and gets into trouble on purpose.

Every ``--trouble`` steps one batch is scaled by a thousand, so that there is a spike to find. It
reports where GRADWATCH_URL points.
"""

import argparse
import time

import torch
from torch import nn

import gradwatch

VOCABULARY, LENGTH, BATCH = 64, 32, 16


class Model(nn.Module):
    """Predicts the next symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 64)
        self.rnn = nn.LSTM(64, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, VOCABULARY)

    def forward(self, symbols: torch.Tensor, scale: float) -> torch.Tensor:
        """Scores of the next symbol at every place."""
        hidden, _ = self.rnn(self.embedding(symbols))
        return self.head(hidden * scale)


def batch() -> torch.Tensor:
    """Sequences that go up by a step of their own: something to learn."""
    start = torch.randint(VOCABULARY, (BATCH, 1))
    stride = torch.randint(1, 5, (BATCH, 1))
    return (start + stride * torch.arange(LENGTH + 1)) % VOCABULARY


def main() -> None:
    """Train until the steps are done; 0 never are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="demo", help="run id")
    parser.add_argument("--steps", type=int, default=0, help="steps to take; 0: until stopped")
    parser.add_argument("--trouble", type=int, default=600, help="steps from one spike to the next")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between steps")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, loss_function = Model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with gradwatch.watch(
        model, optimizer, clip=gradwatch.clip.norm(1.0), run=options.run, project="demo"
    ) as watch:
        step = 0
        while not watch.should_stop and (not options.steps or step < options.steps):
            step += 1
            symbols = batch()
            scale = 1000.0 if step % options.trouble == 0 else 1.0
            scores = model(symbols[:, :-1], scale)
            loss = loss_function(scores.flatten(0, 1), symbols[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.log(loss=loss.detach())
            time.sleep(options.pause)


if __name__ == "__main__":
    main()
