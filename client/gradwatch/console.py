"""What a person sees: one line at the start, five at the end, and each trouble once."""

import logging
import math
from dataclasses import dataclass, field

__all__ = ["Ending", "closing_lines", "log_once", "say"]

_logger = logging.getLogger("gradwatch")


def say(text: str, *, quiet: bool) -> None:
    """Print a line for the person in front of the terminal, unless ``GRADWATCH_QUIET=1``."""
    if not quiet:
        print(f"gradwatch: {text}", flush=True)  # noqa: T201 - the contract: printed, not logged


@dataclass(slots=True)
class LogOnce:
    """Logs each trouble the first time only: a fault at every step must not fill the disk."""

    _known: set[str] = field(default_factory=set)

    def __call__(self, key: str, message: str, *, error: BaseException | None = None) -> None:
        """Log ``message`` as a warning, unless ``key`` was logged before."""
        if key not in self._known:
            self._known.add(key)
            _logger.warning("%s", message, exc_info=error)


log_once = LogOnce


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is told when a Watch closes.

    Attributes:
        steps: Optimizer steps seen.
        nonfinite_steps: Those with a NaN or infinite gradient, among the reported ones.
        first_nonfinite: The first of them and the tensor that the backward pass met first.
        largest_norm: Largest finite global norm among the reported steps; None without one.
        largest_step: The step of it.
        largest_tensor: The tensor with the largest norm at that step.
        clipped_share: Elements changed by clipping over elements seen, 0 to 1; None without clipping.
        dropped: Steps that were not delivered, by reason.
        address: Where the run can be looked at, or where its spool lies.
    """

    steps: int
    nonfinite_steps: int
    first_nonfinite: tuple[int, str] | None
    largest_norm: float | None
    largest_step: int | None
    largest_tensor: str | None
    clipped_share: float | None
    dropped: dict[str, int]
    address: str


def closing_lines(ending: Ending) -> list[str]:
    """Return the five lines of ``close()``: steps, largest norm and where, share clipped, drops, address."""
    steps = f"steps: {ending.steps}"
    if ending.nonfinite_steps:
        steps += f" ({ending.nonfinite_steps} with NaN or infinite gradients"
        if ending.first_nonfinite is not None:
            step, tensor = ending.first_nonfinite
            steps += f", the first at step {step} in {tensor}"
        steps += ")"
    return [
        steps,
        f"largest norm: {_largest(ending)}",
        f"clipped: {_share(ending.clipped_share)}",
        f"dropped: {_drops(ending.dropped)}",
        f"see: {ending.address}",
    ]


def _largest(ending: Ending) -> str:
    norm = ending.largest_norm
    if norm is None or not math.isfinite(norm):
        return "none measured"
    return f"{norm:.4g} at step {ending.largest_step}, mostly {ending.largest_tensor}"


def _share(share: float | None) -> str:
    return "nothing, no clipping policy" if share is None else f"{share:.3%} of all elements"


def _drops(dropped: dict[str, int]) -> str:
    if not any(dropped.values()):
        return "nothing"
    return ", ".join(f"{count} ({reason})" for reason, count in sorted(dropped.items()) if count)
