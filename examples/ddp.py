"""Data-parallel training. Every rank clips alike, rank 0 reports, all look after one another.

Run it with::

    torchrun --nproc-per-node 2 examples/ddp.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch

STEPS = int(os.environ.get("STEPS", "200"))


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    # After init_process_group, on every rank.
    with gradwatch.watch(model, optimizer, clip=gradwatch.clip.norm(1.0)) as watch:
        torch.manual_seed(dist.get_rank())  # each rank its own data
        for _ in range(STEPS):
            x = torch.randn(32, 8)
            loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.log(loss=loss)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
