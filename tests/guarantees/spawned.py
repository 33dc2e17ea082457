"""What a started (not forked) worker is given: a data set that holds a Watch and what it watches."""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

import gradwatch

__all__ = ["Holding"]


@dataclass
class Holding(Dataset[dict[str, Any]]):
    """Trains a step in the worker with all that came along, and tells what it found there."""

    watch: gradwatch.Watch
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __len__(self) -> int:
        return 2

    def __getitem__(self, _: int) -> dict[str, Any]:
        """What the worker's copy is like after it was used in every way."""
        self.optimizer.zero_grad()
        self.model(100.0 * torch.ones(2, 4)).sum().backward()
        before = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.step()
        after = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.watch.log(loss=1.0)
        self.watch.step()
        health = self.watch.health()
        found = {
            "run": self.watch.run,
            "reports": health.reporting or health.delivery is not None,
            "clips": not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
            "flushed": self.watch.flush(1.0),
            "token": self.watch.settings.token,
            "threads": [t.name for t in threading.enumerate() if "gradwatch" in t.name],
        }
        self.watch.close(timeout=1.0)
        return found
