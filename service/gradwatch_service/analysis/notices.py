"""Notices that come from the way of the reports rather than from the gradients.

Pure: totals and ages in, notices out. Gradient detectors know nothing of ranks that fall silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradwatch_service.analysis.incidents import Incident, IncidentTracker
from gradwatch_service.detectors.base import Finding, RunContext

__all__ = ["dropped_notice", "missing_rank_notice"]


def dropped_notice(
    context: RunContext, dropped: Mapping[str, int], step: int, known: Incident | None
) -> Incident | None:
    """Say that the client gave up reports; None while there is nothing new to say.

    One notice per run: it grows with the count and stays as the record of it.

    Args:
        context: The stream it is filed under.
        dropped: Reports given up so far, by reason.
        step: Newest step analysed.
        known: The notice so far.
    """
    total = sum(dropped.values())
    if total <= (known.observed if known else 0):
        return None
    finding = Finding(
        kind="reports_dropped",
        step=known.opened_step if known else step,
        onset_step=known.onset_step if known else step,
        severity="warning",
        observed=float(total),
        score=float(total),
        cause=max(dropped, key=lambda reason: (dropped[reason], reason)),
        evidence={reason: count for reason, count in sorted(dropped.items()) if count},
    )
    return _as_notice(context, finding, last_step=step)


def missing_rank_notice(context: RunContext, ranks: Sequence[int], step: int) -> Incident:
    """Say that these ranks stopped reporting while others went on up to ``step``."""
    finding = Finding(
        kind="rank_missing",
        step=step,
        onset_step=step,
        severity="warning",
        rank=ranks[0],
        observed=float(len(ranks)),
        score=1.0,
        cause="silent",
        evidence={"ranks": ", ".join(map(str, ranks))},
    )
    notice = _as_notice(context, finding, last_step=step)
    return replace(notice, ranks=tuple(ranks)).with_card()


def _as_notice(context: RunContext, finding: Finding, *, last_step: int) -> Incident:
    _, (notice,) = IncidentTracker(context).advance([finding.step], [finding])
    return notice.moved_to(last_step)
