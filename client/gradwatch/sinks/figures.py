"""What a sink is given for one reported step."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Figures"]


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """One step of one optimizer, on the host.

    Attributes:
        optimizer: Its name.
        step: Number of the step.
        time: Unix seconds.
        scalars: What was logged and measured once per step, by name; NaN where it was not finite.
        statistics: Names of the statistics per tensor.
        names: Names of the tensors.
        packed: [statistics, tensors].
    """

    optimizer: str
    step: int
    time: float
    scalars: Mapping[str, float]
    statistics: tuple[str, ...]
    names: tuple[str, ...]
    packed: Tensor

    def tensors(self, statistic: str) -> dict[str, float]:
        """Return one statistic by tensor name; empty when it was not measured."""
        if statistic not in self.statistics:
            return {}
        row = self.packed[self.statistics.index(statistic)].tolist()
        return dict(zip(self.names, row, strict=False))  # names may have been added since
