"""The detectors that run over every stream. A new one is added here and nowhere else."""

from __future__ import annotations

from typing import Any, Final

from gradwatch_service.detectors.base import Analysis
from gradwatch_service.detectors.diagnosis import Diagnosis

__all__ = ["DETECTORS", "columns_read"]

DETECTORS: Final[tuple[Analysis[Any], ...]] = (Diagnosis(),)


def columns_read() -> tuple[str, ...] | None:
    """Tensor statistics that any detector reads; None when one reads all."""
    asked: list[tuple[str, ...] | None] = [getattr(d, "columns", None) for d in DETECTORS]
    if any(columns is None for columns in asked):
        return None
    return tuple(sorted({name for columns in asked for name in columns or ()}))
