"""How often a run may alarm: a detector that cries wolf is worth less than none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gradwatch_service.detectors.base import Severity
from gradwatch_service.detectors.state_codec import shallow

__all__ = ["BudgetState", "granted"]

SPAN: Final[dict[Severity, int]] = {"critical": 20_000, "warning": 50_000}  # reported steps
MOST: Final[dict[Severity, int]] = {"critical": 3, "warning": 10}
_LOWER: Final[dict[Severity, Severity]] = {"critical": "warning", "warning": "info", "info": "info"}


@dataclass(slots=True)
class BudgetState:
    """Steps at which alarms were granted, and what the one going on was granted. Mutable."""

    seen: int = 0
    critical: list[int] = field(default_factory=list)
    warning: list[int] = field(default_factory=list)
    current: int = 0  # 0 nothing yet, 1 warning, 2 critical: what the open trouble has spent

    def copy(self) -> BudgetState:
        """Return a state of its own."""
        twin = shallow(self)
        twin.critical = self.critical.copy()
        twin.warning = self.warning.copy()
        return twin


def granted(state: BudgetState, wanted: Severity, *, opens: bool) -> Severity:
    """Severity that the budget allows now; spends it.

    At most 3 critical in 20 000 and 10 warnings in 50 000 reported steps; what is beyond is told
    one level lower. A trouble that goes on costs nothing more unless it becomes worse.
    """
    if opens:
        state.current = 0
    severity = wanted
    while severity != "info":
        cost = 2 if severity == "critical" else 1
        if state.current >= cost:
            return severity
        spent: list[int] = getattr(state, severity)
        recent = [at for at in spent if at > state.seen - SPAN[severity]]
        if len(recent) < MOST[severity]:
            setattr(state, severity, [*recent, state.seen])
            state.current = cost
            return severity
        severity = _LOWER[severity]
    return severity
