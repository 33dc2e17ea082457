"""Hugging Face Trainer: one line after the Trainer is built."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

import gradwatch
from gradwatch.errors import WatchError

__all__ = ["attach"]

STATE_FILE = "gradwatch.pt"


def attach(trainer: Trainer, *, clip: Any = None, **watch_options: Any) -> gradwatch.Watch:
    """Watch the Trainer's steps, and clip in its place.

    With ``clip`` the Trainer's own clipping (``max_grad_norm``) is taken over: gradients are clipped
    once, by the policy, and the ``grad_norm`` it logs is ours, before clipping. Without, the Trainer
    trains bit for bit as it would have. The loss of every step is reported, the spool lies
    in ``<output_dir>/gradwatch``, checkpoints hold the Watch's state, and ``stop_on`` ends the training.

    Args:
        trainer: The Trainer, before ``train()``.
        clip: A policy of :mod:`gradwatch.clip`; None measures only.
        **watch_options: Further options of :func:`gradwatch.watch`.

    Returns:
        The running Watch; it closes when training ends.

    Raises:
        WatchError: The Trainer shards the model (FSDP) or hands it to DeepSpeed.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        engine = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
        raise WatchError(
            f"Trainer with {engine}: its gradients are sharded or clipped inside the engine, and are "
            "not watched yet. Data-parallel and single-process training are."
        )
    options = {"spool": Path(str(trainer.args.output_dir), "gradwatch"), **watch_options}
    options.setdefault("scaler", trainer.accelerator.scaler)
    trainer.create_optimizer()  # the Trainer keeps it, and would make the same one in train()
    watch = gradwatch.watch(trainer.model, trainer.optimizer, clip=clip, **options)
    _take_over_clipping(trainer, watch, clips=clip is not None)
    losses = _collect_losses(trainer)
    trainer.add_callback(_WatchCallback(watch, losses))
    return watch


def _take_over_clipping(trainer: Trainer, watch: gradwatch.Watch, *, clips: bool) -> None:
    """Stand in for the one call between backward and step, which no callback comes before."""
    accelerator = trainer.accelerator
    theirs = accelerator.clip_grad_norm_

    def clip_grad_norm_(parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        accelerator.unscale_gradients()
        stats = watch.before_update(trainer.optimizer)
        if stats is not None and clips:
            return stats.global_norm
        # Measured only, or closed, or stopped by an error: the Trainer does what it always does.
        accelerator.unscale_gradients = _nothing  # it refuses to be called twice in a step
        try:
            return theirs(parameters, max_norm, norm_type)
        finally:
            del accelerator.unscale_gradients

    accelerator.clip_grad_norm_ = clip_grad_norm_


def _nothing(*_: Any) -> None:
    """Stand in for what has been done already."""


def _collect_losses(trainer: Trainer) -> list[Tensor]:
    """Gather what the Trainer adds up: the loss of each micro-batch, on its device."""
    losses: list[Tensor] = []
    theirs = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = theirs(*args, **kwargs)
        losses.append(loss.detach())
        return loss

    # On the instance: a Trainer that overrides training_step keeps its own inside ours.
    trainer.training_step = training_step  # type: ignore[method-assign]
    return losses


class _WatchCallback(TrainerCallback):
    def __init__(self, watch: gradwatch.Watch, losses: list[Tensor]) -> None:
        self._watch = watch
        self._losses = losses

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        saved = _checkpoint(args, state) / STATE_FILE
        if state.global_step and saved.exists():
            self._watch.load_state_dict(torch.load(saved, weights_only=True))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._losses:
            self._watch.log(loss=torch.stack(self._losses).sum())
            self._losses.clear()
        if self._watch.should_stop:
            control.should_training_stop = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics and "eval_loss" in metrics:
            self._watch.log(eval_loss=metrics["eval_loss"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder = _checkpoint(args, state)
        if state.is_world_process_zero and folder.is_dir():
            torch.save(self._watch.state_dict(), folder / STATE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._watch.close()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir), f"checkpoint-{state.global_step}")
