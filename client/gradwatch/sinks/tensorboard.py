"""TensorBoard, through ``torch.utils.tensorboard``; needs the package ``tensorboard``."""

import importlib
import os
from collections.abc import Sequence
from typing import Any

from gradwatch.sinks.figures import Figures

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes scalars as ``gradwatch/<scalar>`` and statistics as ``gradwatch/<statistic>/<tensor>``.

    Reports of an optimizer that is not called ``default`` have its name in front.

    Args:
        to: Directory of the event files, or a ``SummaryWriter`` of yours, which stays open.
        statistics: Statistics per tensor to write.

    Raises:
        ImportError: ``to`` is a directory and the package is not installed.
    """

    def __init__(
        self,
        to: str | os.PathLike[str] | Any,
        statistics: Sequence[str] = ("norm",),
    ) -> None:
        self._ours = isinstance(to, str | os.PathLike)
        self._writer: Any = to
        if self._ours:
            module = importlib.import_module("torch.utils.tensorboard")
            self._writer = module.SummaryWriter(os.fspath(to))
        self._statistics = tuple(statistics)

    def write(self, figures: Figures) -> None:
        """Write one step."""
        head = "" if figures.optimizer == "default" else f"{figures.optimizer}/"
        values = {f"{head}gradwatch/{name}": value for name, value in figures.scalars.items()}
        for statistic in self._statistics:
            for tensor, value in figures.tensors(statistic).items():
                values[f"{head}gradwatch/{statistic}/{tensor}"] = value
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, figures.step, walltime=figures.time)

    def close(self) -> None:
        """Make what was written last."""
        if self._ours:
            self._writer.close()
        else:
            self._writer.flush()
