"""A training loop with one line added.

Run it with::

    gradwatch serve            # in another terminal
    python examples/plain_loop.py
"""

import os

import torch
from torch import nn

import gradwatch

STEPS = int(os.environ.get("STEPS", "300"))


class Sums(nn.Module):
    """Reads a sequence of numbers and says their running sum."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


def main() -> None:
    torch.manual_seed(0)
    model = Sums()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    watch = gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(0.1))  # the one line

    for step in range(STEPS):
        x = torch.randn(16, 20, 1)
        loss = nn.functional.mse_loss(model(x), x.cumsum(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.log(loss=loss)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    watch.close()


if __name__ == "__main__":
    main()
