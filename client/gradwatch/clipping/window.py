"""The last norms of a run in the order they came and in the order of size, on the device."""

import math

import torch
from torch import Tensor

from gradwatch.clipping.learned import JointStage
from gradwatch.clipping.stages import Scope
from gradwatch.errors import PolicyError

__all__ = ["MIN_NORMS", "WindowStage", "log_spread", "quantile"]

MIN_NORMS = 3  # fewer say nothing; this and the numbers below are those of the service
_MIN_SPREAD = 0.08
_MAD_TO_SIGMA = 1.4826


class WindowStage(JointStage):
    """Remembers the last ``size`` values; empty places hold infinity.

    State: ``ring`` [size] as they came, ``ordered`` [size] by size, ``count`` [] ever taken in.
    """

    def __init__(self, scope: Scope, size: int, **initial: float) -> None:
        super().__init__(scope, count=0.0, **initial)
        self._size = size
        self._places = torch.empty(0)

    def bind(self, like: Tensor, count: int) -> None:
        """As :meth:`.Stage.bind`.

        Raises:
            PolicyError: A state was loaded whose window has another length.
        """
        super().bind(like, count)
        self._places = torch.arange(self._size, device=like.device)
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
        """Take one value in, if ``usable``; the oldest of a full window leaves."""
        ring, ordered, count = (self.tensors[n] for n in ("ring", "ordered", "count"))
        slot = count.remainder(self._size)
        leaves = torch.searchsorted(ordered, ring.gather(0, slot.long().view(1)))
        changed = torch.where((self._places == leaves) & usable, value, ordered)
        self.tensors["ring"] = torch.where((self._places == slot) & usable, value, ring)
        # Sorted but for one place: of 10 000 norms that sorts five times faster than the ring does.
        self.tensors["ordered"] = changed.sort().values
        self.tensors["count"] = count + usable

    @property
    def held(self) -> Tensor:
        """[] number of values in the window."""
        return self.tensors["count"].clamp(max=self._size)

    def quantile(self, share: float | Tensor) -> Tensor:
        """[] quantile of the values in the window, [k] for [k] shares; infinite while there is none."""
        return quantile(self.tensors["ordered"], self.held, share)

    def alarm_level(self) -> Tensor:
        """[] value from which on one stands out, of logarithms; infinite before the third.

        The service's ``spike_threshold``: median + max(5 s k, ln 3), at most ln 1000 above it, with
        s = max(0.08, 1.4826 MAD) and k = 1 + 30 / n.
        """
        held, centre = self.held, self.quantile(0.5)
        spread = log_spread(self.tensors["ordered"], held, centre)
        width = 5 * spread * (1 + 30 / held.clamp(min=1))
        width = width.clamp(math.log(3), math.log(1000))
        return torch.where(held >= MIN_NORMS, centre + width, math.inf)


def log_spread(ordered: Tensor, count: Tensor, centre: Tensor) -> Tensor:
    """Return the [] robust deviation of the first ``count`` of sorted logarithms: max(0.08, 1.4826 MAD)."""
    distances = (ordered - centre).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    spread = _MAD_TO_SIGMA * quantile(distances.sort().values, count, 0.5)
    return spread.clamp(min=_MIN_SPREAD)


def quantile(ordered: Tensor, count: Tensor, share: float | Tensor) -> Tensor:
    """Return the quantile of the first ``count`` of sorted values, linearly interpolated.

    [] for one share, [k] for [k]. numpy's default (Hyndman and Fan 1996, type 7). Infinite where ``count`` is 0.
    """
    last = (count - 1).clamp(min=0)
    place = last * share
    low = place.floor()
    high = torch.minimum(low + 1, last)
    below, above = ordered.take(torch.stack([low, high]).long()).unbind()
    return torch.where(count > 0, below + (place - low) * (above - below), torch.inf)
