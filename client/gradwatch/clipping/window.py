"""The last norms of a run in the order they came and in the order of size, on the device."""

import torch
from torch import Tensor

from gradwatch.clipping.learned import JointStage
from gradwatch.clipping.stages import Scope
from gradwatch.errors import PolicyError

__all__ = ["WindowStage", "quantile"]


class WindowStage(JointStage):
    """Remembers the last ``size`` values; empty places hold infinity.

    State: ``ring`` [size] as they came, ``ordered`` [size] by size, ``count`` [] ever taken in.
    """

    def __init__(self, scope: Scope, size: int, **initial: float) -> None:
        super().__init__(scope, count=0.0, **initial)
        self._size = size

    def bind(self, like: Tensor, count: int) -> None:
        """As :meth:`.Stage.bind`.

        Raises:
            PolicyError: A state was loaded whose window has another length.
        """
        super().bind(like, count)
        for name in ("ring", "ordered"):
            known = self.tensors.get(name)
            if known is None:
                known = torch.full((self._size,), torch.inf)
            elif known.shape != (self._size,):
                raise PolicyError(
                    f"The state loaded has a window of {known.numel()} norms, "
                    f"this policy has one of {self._size}."
                )
            self.tensors[name] = known.to(like)

    def remember(self, value: Tensor, usable: Tensor) -> None:
        """Take one value in, if ``usable``; the oldest of a full window leaves.

        Sorting anew would cost as much as the step itself where windows are long.
        """
        ring, ordered = self.tensors["ring"], self.tensors["ordered"]
        places = torch.arange(self._size, device=ring.device)
        slot = torch.remainder(self.tensors["count"], self._size).long().view(1)
        leaves = torch.searchsorted(ordered, ring.gather(0, slot))
        shorter = torch.cat([ordered[1:], ordered.new_full((1,), torch.inf)])
        without = torch.where(places >= leaves, shorter, ordered)
        enters = torch.searchsorted(without, value.view(1))
        longer = torch.cat([without[:1], without[:-1]])
        with_it = torch.where(places > enters, longer, without)
        self.learn(
            usable,
            ring=torch.where(places == slot, value, ring),
            ordered=torch.where(places == enters, value, with_it),
            count=self.tensors["count"] + 1,
        )

    @property
    def held(self) -> Tensor:
        """[] number of values in the window."""
        return self.tensors["count"].clamp(max=self._size)

    def quantile(self, share: float) -> Tensor:
        """[] quantile of the values in the window; infinite while there is none."""
        return quantile(self.tensors["ordered"], self.held, share)


def quantile(ordered: Tensor, count: Tensor, share: float) -> Tensor:
    """Return the [] quantile of the first ``count`` of sorted values, linearly interpolated.

    numpy's default (Hyndman and Fan 1996, type 7). Infinite where ``count`` is 0.
    """
    last = (count - 1).clamp(min=0)
    place = last * share
    low = place.floor()
    high = torch.minimum(low + 1, last)
    below, above = ordered.gather(0, torch.stack([low, high]).long()).unbind()
    return torch.where(count > 0, below + (place - low) * (above - below), torch.inf)
