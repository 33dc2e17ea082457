"""Hugging Face Accelerate: one line, before or after ``prepare``."""

from typing import Any

from accelerate import Accelerator
from torch import nn

import gradwatch
from gradwatch.errors import WatchError

__all__ = ["attach"]


def attach(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    *,
    clip: Any = None,
    **watch_options: Any,
) -> gradwatch.Watch:
    """Watch a loop that Accelerate prepares, or has prepared.

    Gradients are clipped and measured when the optimizer really steps: accumulated, reduced and
    unscaled. Steps that Accelerate's GradScaler leaves out are counted as skipped. Remove calls of
    ``accelerator.clip_grad_norm_`` from the loop when giving ``clip``: they would clip first.

    Args:
        accelerator: The loop's Accelerator.
        model: The model, prepared or not.
        optimizer: The optimizer, prepared or not, or several as :func:`gradwatch.watch` takes them.
        clip: A policy of :mod:`gradwatch.clip`; None measures only.
        **watch_options: Further options of :func:`gradwatch.watch`.

    Returns:
        The running Watch; close it at the end.

    Raises:
        WatchError: The Accelerator shards the model (FSDP) or hands it to DeepSpeed.
    """
    kind = str(accelerator.distributed_type.value)
    if kind in {"FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"}:
        raise WatchError(
            f"accelerate with {kind}: its gradients are sharded or clipped inside the engine, and are "
            "not watched yet. Data-parallel and single-process training are."
        )
    options = {"scaler": accelerator.scaler, **watch_options}
    return gradwatch.watch(accelerator.unwrap_model(model), optimizer, clip=clip, **options)
