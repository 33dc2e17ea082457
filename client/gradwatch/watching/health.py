"""How a Watch is doing."""

from collections.abc import Mapping
from dataclasses import dataclass

from gradwatch.reporting.reporter import Health as Delivery

__all__ = ["Health"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a Watch is doing.

    Attributes:
        mode: ``online``, ``offline`` or ``disabled``.
        clipping: False after an error in clipping, and after ``close()`` or ``detach()``.
        reporting: False after an error in reporting, on ranks that do not report, when disabled.
        errors: Errors caught in the hook since the start.
        steps: Optimizer steps seen, by optimizer.
        kernel: Kernel in use, by optimizer.
        kernel_fallback: Why it is not the preferred one, by optimizer; empty when it is.
        rejected_scalars: Values given to ``log()`` that were no numbers or came too late.
        delivery: What the reporter says: state, sent, pending, dropped by reason. None without one.
    """

    mode: str
    clipping: bool
    reporting: bool
    errors: int
    steps: Mapping[str, int]
    kernel: Mapping[str, str]
    kernel_fallback: Mapping[str, str]
    rejected_scalars: int
    delivery: Delivery | None
