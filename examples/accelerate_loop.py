"""Accelerate, with gradient accumulation: one line, before or after ``prepare``.

Run it with::

    pip install 'gradwatch[accelerate]'
    accelerate launch examples/accelerate_loop.py
"""

import os

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradwatch
from gradwatch.integrations.accelerate import attach

STEPS = int(os.environ.get("STEPS", "100"))


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=4)
    x = torch.randn(16 * 4 * STEPS, 8)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    watch = attach(accelerator, model, optimizer, clip=gradwatch.clip.norm(0.5))  # the one line

    for inputs, targets in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            watch.log(loss=loss)
    watch.close()


if __name__ == "__main__":
    main()
