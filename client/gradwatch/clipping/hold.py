"""Standing still after a change of the learning rate, which changes the norms that follow."""

import torch
from torch import Tensor

__all__ = ["HOLD_STEPS", "RATES", "after_change", "no_rates"]

HOLD_STEPS = 20  # these numbers are those of the service's rule
RATES = 5  # steps within which changes count as one
_FACTOR = 2.0


def no_rates(like: Tensor) -> Tensor:
    """Return [RATES] rates of which none is known."""
    return torch.full((RATES,), torch.nan).to(like)


def after_change(
    rates: Tensor, since: Tensor, rate: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Take in a step's learning rate; return the [RATES] newest rates and the steps since a change.

    A change is more than twofold within the last five steps. Nothing waits for the device.

    Args:
        rates: [RATES] rates of the steps before, oldest first; NaN where one is not known.
        since: [] steps since the newest change, at most ``HOLD_STEPS``.
        rate: The step's rate; None is not known.
    """
    if isinstance(rate, Tensor):
        new = rate.detach().reshape(1).to(rates, non_blocking=True)
    else:
        new = torch.full_like(rates[:1], torch.nan if rate is None else rate)
    window = torch.cat([rates, new])
    known = window > 0
    highest = torch.where(known, window, -torch.inf).amax()
    lowest = torch.where(known, window, torch.inf).amin()
    changed = highest > _FACTOR * lowest
    since = torch.where(changed, 0, (since + 1).clamp(max=HOLD_STEPS))
    return window[1:], since
