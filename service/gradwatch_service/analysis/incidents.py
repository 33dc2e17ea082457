"""Incidents: findings that last, one per cause, opened and closed with hysteresis.

Pure: steps and findings in, incidents out. The same incidents for any split of the steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Self

from gradwatch_service.analysis.cards import write_card
from gradwatch_service.detectors.base import Finding, RunContext, UnknownStateVersion

__all__ = ["NOTICE_KINDS", "Incident", "IncidentTracker", "incident_id"]

QUIET_STEPS: Final = 10  # reported steps without evidence after which an incident closes
QUIET_FOR: Final = {"replicas_apart": 200}  # replicas are compared every few steps only
SAME_CAUSE_STEPS: Final = 10  # tensors that join within so many steps belong to the same cause
CAUSE_STEPS: Final = 32  # what is seen later may be a consequence
MOST_TENSORS: Final = 256  # names kept per incident; a model can have ten thousand tensors
NOTICE_KINDS: Final = (
    "replicas_apart",
    "rank_missing",
    "overclipping",
    "underflow",
    "reports_dropped",
)
_RANK_OF: Final = {"critical": 2, "warning": 1, "info": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One lasting trouble of a run, with its card. Steps are optimizer steps.

    Attributes:
        id: Hash of run, attempt, optimizer, kind, opened step and first tensor.
        run: Run id.
        attempt: Attempt of the run.
        optimizer: Name of the optimizer.
        kind: What it is in the gradients, or a kind of notice.
        severity: ``critical``, ``warning`` or ``info``; only critical pages.
        status: ``open``, ``closed`` or ``retracted``.
        cause: Reason code, ``"unknown"`` when the data do not show one.
        opened_step: The step whose data made the detector decide.
        onset_step: Where it began, looking back from ``opened_step``.
        last_step: Last step with evidence.
        closed_step: Step at which quiet was long enough, or None.
        first_tensor: Where it began, or None.
        tensors: Tensors it is about, at most 256.
        ranks: Ranks with evidence.
        observed: Worst value judged.
        expected: Its usual level.
        score: How far beyond the limit at worst; 1 is the limit.
        provisional: Decided while earlier reports were missing.
        revision: Times that late data changed it.
        verdict: One sentence: what happened, how large, where.
        why: What the data show of the cause.
        next: What to do.
        evidence: Numbers behind the cause.
    """

    id: str
    run: str
    attempt: int
    optimizer: str
    kind: str
    severity: str
    status: str = "open"
    cause: str
    opened_step: int
    onset_step: int
    last_step: int
    closed_step: int | None = None
    first_tensor: str | None = None
    tensors: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    observed: float
    expected: float
    score: float
    provisional: bool = False
    revision: int = 0
    verdict: str = ""
    why: str = ""
    next: str = ""
    evidence: dict[str, float | int | str] = field(default_factory=dict)

    @property
    def is_notice(self) -> bool:
        """Whether it is a notice: worth knowing, but no gradient fault."""
        return self.kind in NOTICE_KINDS

    def moved_to(self, step: int) -> Incident:
        """Return it with evidence up to ``step``."""
        return replace(self, last_step=max(self.last_step, step))

    def with_card(self) -> Incident:
        """Return it with texts that say what its numbers now are."""
        card = write_card(
            kind=self.kind,
            cause=self.cause,
            observed=self.observed,
            expected=self.expected,
            first_tensor=self.first_tensor,
            tensors=self.tensors,
            ranks=self.ranks,
            evidence=self.evidence,
        )
        return replace(self, verdict=card.verdict, why=card.why, next=card.next)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values in the order of the contract."""
        return {**asdict(self), "tensors": list(self.tensors), "ranks": list(self.ranks)}

    @classmethod
    def from_json(cls, obj: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote; unknown keys are ignored."""
        known = {f.name: obj[f.name] for f in fields(cls) if f.name in obj}
        known |= {"tensors": tuple(obj["tensors"]), "ranks": tuple(obj["ranks"])}
        return cls(**known)


def incident_id(
    run: str, *, attempt: int, optimizer: str, kind: str, opened_step: int, first_tensor: str | None
) -> str:
    """Sixteen hex digits that stay the same whenever the same incident is found again."""
    parts = json.dumps([run, attempt, optimizer, kind, opened_step, first_tensor])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Open:
    incident: Incident
    quiet: int = 0  # reported steps since the last evidence


@dataclass(frozen=True, slots=True)
class IncidentTracker:
    """The open incidents of one (run, attempt, optimizer); :meth:`advance` makes a new one.

    Example:
        >>> tracker = IncidentTracker(RunContext(run="r"))
        >>> spike = Finding(kind="exploding", step=7, onset_step=7, severity="critical", score=2.0)
        >>> tracker, changed = tracker.advance([7], [spike])
        >>> changed[0].status, changed[0].opened_step
        ('open', 7)
        >>> tracker, changed = tracker.advance(range(8, 30), [])
        >>> changed[0].status, changed[0].last_step, changed[0].closed_step
        ('closed', 7, 17)
    """

    context: RunContext
    opened: tuple[_Open, ...] = ()

    def advance(
        self, steps: Sequence[int], findings: Iterable[Finding], *, provisional: bool = False
    ) -> tuple[IncidentTracker, list[Incident]]:
        """Take the findings of these steps in.

        Args:
            steps: Reported steps, increasing, later than every step before.
            findings: Findings at these steps, in step order.
            provisional: Earlier reports are still missing.

        Returns:
            The next tracker, and every incident that was opened, extended or closed, once each.
        """
        waiting = sorted(findings, key=lambda finding: (finding.step, finding.rank))
        if not waiting and not self.opened:
            return self, []
        opened = list(self.opened)
        changed: dict[str, Incident] = {}
        at = 0
        for step in steps:
            now = at
            while at < len(waiting) and waiting[at].step <= step:
                at += 1
            opened = self._step(int(step), waiting[now:at], opened, changed, provisional)
            if at == len(waiting) and not opened:
                break
        return replace(self, opened=tuple(opened)), list(changed.values())

    def _step(
        self,
        step: int,
        findings: Sequence[Finding],
        opened: list[_Open],
        changed: dict[str, Incident],
        provisional: bool,  # noqa: FBT001 - private, always passed by position
    ) -> list[_Open]:
        touched: set[str] = set()
        for finding in findings:
            match = next((i for i, o in enumerate(opened) if _same_cause(o, finding)), None)
            if match is None:
                incident = self._open(finding, provisional)
                opened.append(_Open(incident))
            else:
                incident = _extended(opened[match].incident, finding)
                opened[match] = _Open(incident)
            touched.add(incident.id)
            changed[incident.id] = incident
        kept = []
        for entry in opened:
            quiet = 0 if entry.incident.id in touched else entry.quiet + 1
            if quiet >= QUIET_FOR.get(entry.incident.kind, QUIET_STEPS):
                closed = replace(entry.incident, status="closed", closed_step=step)
                changed[closed.id] = closed
            else:
                kept.append(_Open(entry.incident, quiet))
        return kept

    def _open(self, finding: Finding, provisional: bool) -> Incident:  # noqa: FBT001 - as above
        c = self.context
        return Incident(
            id=incident_id(
                c.run,
                attempt=c.attempt,
                optimizer=c.optimizer,
                kind=finding.kind,
                opened_step=finding.step,
                first_tensor=finding.first_tensor,
            ),
            run=c.run,
            attempt=c.attempt,
            optimizer=c.optimizer,
            kind=finding.kind,
            severity=finding.severity,
            cause=finding.cause,
            opened_step=finding.step,
            onset_step=finding.onset_step,
            last_step=finding.step,
            first_tensor=finding.first_tensor,
            tensors=finding.tensors[:MOST_TENSORS],
            ranks=(finding.rank,),
            observed=finding.observed,
            expected=finding.expected,
            score=finding.score,
            provisional=provisional,
            evidence=dict(finding.evidence),
        ).with_card()

    def incidents(self) -> list[Incident]:
        """Return the open ones."""
        return [entry.incident for entry in self.opened]

    def dump(self) -> list[dict[str, Any]]:
        """Plain JSON values that :meth:`load` restores exactly."""
        return [{"incident": o.incident.to_json(), "quiet": o.quiet} for o in self.opened]

    @classmethod
    def load(cls, context: RunContext, data: list[dict[str, Any]]) -> IncidentTracker:
        """Read what :meth:`dump` wrote.

        Raises:
            UnknownStateVersion: A field is missing.
        """
        try:
            opened = tuple(_Open(Incident.from_json(o["incident"]), o["quiet"]) for o in data)
        except (KeyError, TypeError) as error:
            raise UnknownStateVersion(f"open incidents of another version: {error}") from error
        return cls(context, opened)


def _same_cause(entry: _Open, finding: Finding) -> bool:
    """Whether a finding is more of an open incident rather than a new one."""
    incident = entry.incident
    if incident.kind != finding.kind:
        return False
    if finding.kind != "vanishing" or not finding.tensors:
        return True
    # A tensor that dies long after the others did is another fault.
    joined = finding.onset_step - incident.opened_step <= SAME_CAUSE_STEPS
    return joined or bool(set(finding.tensors) & set(incident.tensors))


def _extended(incident: Incident, finding: Finding) -> Incident:
    """Return the incident with one more step of evidence; its numbers are those of the worst step."""
    worse = finding.score > incident.score
    severe = _RANK_OF[finding.severity] > _RANK_OF[incident.severity]
    names = incident.tensors
    if new := [name for name in finding.tensors if name not in set(names)]:
        names = (*names, *new)[:MOST_TENSORS]
    late = finding.step > incident.opened_step + CAUSE_STEPS
    known = late or _telling(incident.cause) >= _telling(finding.cause)
    longer = replace(
        incident,
        last_step=max(incident.last_step, finding.step),
        severity=finding.severity if severe else incident.severity,
        cause=incident.cause if known else finding.cause,
        evidence=incident.evidence if known else {**incident.evidence, **finding.evidence},
        tensors=names,
        ranks=tuple(sorted({*incident.ranks, finding.rank})),
        observed=finding.observed if worse else incident.observed,
        expected=finding.expected if worse else incident.expected,
        score=max(finding.score, incident.score),
    )
    return longer.with_card()


def _telling(cause: str) -> int:
    """How much a cause explains; a later step may show a better one."""
    return {"unknown": 0, "grown_alike": 1, "unusual_batch": 2, "loss_scale": 3}.get(cause, 4)
