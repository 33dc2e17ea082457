"""What goes wrong in the demo, and when: stated before it happens, so that nobody has to guess."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Troubles"]


@dataclass(frozen=True, slots=True)
class Troubles:
    """Two accidents, at steps that follow from the length of the training.

    Attributes:
        rate_step: First step with the wrong learning rate.
        rate_steps: How many steps it lasts.
        rate_factor: By how much the learning rate is too large.
        batch_step: The step whose batch holds a row with an infinite loss weight, as a division by
            an empty file's length would give. Its gradients are not finite.
    """

    rate_step: int
    batch_step: int
    rate_steps: int = 8
    rate_factor: float = 30.0

    @classmethod
    def within(cls, steps: int) -> "Troubles":
        """Place both so that there is a calm stretch before, between and after them."""
        return cls(rate_step=steps // 2, batch_step=steps * 3 // 4)

    def learning_rate(self, step: int, usual: float) -> float:
        """The learning rate of a step: warmed up over 20 steps, then ``usual``, or far too large."""
        if self.rate_step <= step < self.rate_step + self.rate_steps:
            return usual * self.rate_factor
        return usual * min(1.0, (step + 1) / 20)

    def weights(self, step: int, batch: int) -> Tensor | None:
        """Loss weight of each row, [batch]; None on every step but the corrupted one."""
        if step != self.batch_step:
            return None
        weights = torch.ones(batch)
        weights[0] = torch.inf
        return weights

    def sentences(self) -> tuple[str, str]:
        """Both accidents in words."""
        last = self.rate_step + self.rate_steps - 1
        return (
            f"steps {self.rate_step}-{last}: the learning rate is {self.rate_factor:.0f} times too large",
            f"step {self.batch_step}: one corrupted row, its loss weight is infinite",
        )
