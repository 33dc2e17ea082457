"""Lightning: one callback."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

import gradwatch

__all__ = ["GradwatchCallback"]

_logger = logging.getLogger("gradwatch")


class GradwatchCallback(pl.Callback):
    """Clips and measures every optimizer of a LightningModule.

    Works under automatic and manual optimization and gradient accumulation; names are the module's
    own (``net.0.weight``). The loss that ``training_step`` returns is logged. Checkpoints hold the
    Watch's state. Training stops where ``stop_on`` says so.

    Args:
        clip: A policy of :mod:`gradwatch.clip`; None measures only. Leave the Trainer's
            ``gradient_clip_val`` unset then, it would clip a second time.
        **watch_options: Further options of :func:`gradwatch.watch`.

    Attributes:
        watch: The running Watch; None before training starts.

    Example:
        ``Trainer(callbacks=[GradwatchCallback(clip=gradwatch.clip.norm(1.0))])``
    """

    def __init__(self, *, clip: Any = None, **watch_options: Any) -> None:
        super().__init__()
        self.watch: gradwatch.Watch | None = None
        self._clip = clip
        self._options = watch_options
        self._restored: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the Watch: the optimizers exist now."""
        if self._clip is not None and trainer.gradient_clip_val is not None:
            _logger.warning(
                "Trainer(gradient_clip_val=%r) clips a second time after %r: set one of them.",
                trainer.gradient_clip_val,
                self._clip,
            )
        optimizers = trainer.optimizers
        options = {"spool": Path(trainer.default_root_dir, "gradwatch"), **self._options}
        options.setdefault("scaler", getattr(trainer.precision_plugin, "scaler", None))
        self.watch = gradwatch.watch(
            pl_module,
            optimizers[0] if len(optimizers) == 1 else optimizers,
            clip=self._clip,
            **options,
        )
        if self._restored is not None:
            self.watch.load_state_dict(self._restored)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Clip and measure before Lightning clips: the raw gradient is what is reported."""
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        # A fused optimizer unscales in its own kernel, later; then the step hook does the work.
        if self.watch is not None and not (
            scaled and getattr(optimizer, "_step_supports_amp_scaling", False)
        ):
            self.watch.before_update(optimizer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the loss; stop the training where ``stop_on`` says so."""
        if self.watch is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self.watch.log(loss=loss)
        if self.watch.should_stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the Watch."""
        if self.watch is not None:
            self.watch.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the Watch as failed, or as interrupted."""
        if self.watch is not None:
            interrupted = isinstance(exception, KeyboardInterrupt)
            self.watch.close(status="interrupted" if interrupted else "failed")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {} if self.watch is None else self.watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the Watch starts."""
        self._restored = state_dict or None
