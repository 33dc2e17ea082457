"""Lightning: one callback.

Run it with::

    pip install 'gradwatch[lightning]'
    python examples/lightning_loop.py
"""

import os

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradwatch
from gradwatch.integrations.lightning import GradwatchCallback

STEPS = int(os.environ.get("STEPS", "200"))


class Regression(pl.LightningModule):
    """Learns to add up eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2048, 8)
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[GradwatchCallback(clip=gradwatch.clip.norm(0.5))],  # the one line
    )
    trainer.fit(Regression(), DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=32))


if __name__ == "__main__":
    main()
