"""The detectors that run over every stream. A new one is added here and nowhere else."""

from __future__ import annotations

from typing import Any, Final

from gradwatch_service.detectors.base import Analysis
from gradwatch_service.detectors.diagnosis import Diagnosis

__all__ = ["DETECTORS"]

DETECTORS: Final[tuple[Analysis[Any], ...]] = (Diagnosis(),)
