"""What trackers do with every gradient at a logged step, for the clipping benchmark."""

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable

import torch

__all__ = ["SLOW", "peers"]

Turn = Callable[[], object]
SLOW = ("tensorboard", "wandb")  # how the names of these turns begin: many times torch's clipping


def peers(parameters: list[torch.nn.Parameter]) -> dict[str, Turn]:
    """Return a turn for every tracker that is installed; says which are not."""
    found: dict[str, Turn] = {}
    for package, make in (("tensorboard", _tensorboard), ("wandb", _wandb)):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: not measured")
        else:
            found |= make(parameters)
    return found


def _tensorboard(parameters: list[torch.nn.Parameter]) -> dict[str, Turn]:
    tensorboard = importlib.import_module("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(tempfile.mkdtemp())
    return {
        "tensorboard add_histogram": lambda: [
            writer.add_histogram(str(i), p.grad, 0) for i, p in enumerate(parameters)
        ]
    }


def _wandb(parameters: list[torch.nn.Parameter]) -> dict[str, Turn]:
    """What ``wandb.watch`` does in its hooks at log_freq=1, without the backward pass around them."""
    os.environ["WANDB_SILENT"] = "true"
    wandb = importlib.import_module("wandb")
    watching = importlib.import_module("wandb.integration.torch.wandb_torch").TorchHistory()
    run = wandb.run or wandb.init(mode="offline", dir=tempfile.mkdtemp())

    def turn() -> None:
        for i, p in enumerate(parameters):
            watching.log_tensor_stats(p.grad, f"gradients/{i}")
        run.log({})

    return {"wandb.watch, its hooks": turn}
