"""What every analysis keeps: rows in, state and findings out, the same for any split of the rows.

Detectors and recommenders implement :class:`Analysis`. The analyser owns everything they do not:
clocks, threads, gaps, snapshots and replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from gradwatch_service.rows import StepRows

__all__ = ["Analysis", "Finding", "Kind", "RunContext", "Severity", "UnknownStateVersion"]

Kind = Literal["exploding", "vanishing", "oscillating", "nonfinite"]
NoticeKind = Literal[
    "replicas_apart", "rank_missing", "overclipping", "underflow", "reports_dropped"
]
Severity = Literal["critical", "warning", "info"]


class UnknownStateVersion(ValueError):  # noqa: N818 - named for what happened, not an error of the caller
    """A stored state was written by another version; replay the steps instead."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What is known of a stream before its first step. Never changes afterwards.

    Attributes:
        run: Run id.
        attempt: Attempt of the run, from 0.
        optimizer: Name of the optimizer.
        rank: Rank whose rows are read.
        world_size: Ranks of the job.
        optimizer_class: Such as ``"AdamW"``, or None.
        policy: The clipping policy as registered, or None when nothing is clipped.
    """

    run: str
    attempt: int = 0
    optimizer: str = "default"
    rank: int = 0
    world_size: int = 1
    optimizer_class: str | None = None
    policy: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What a detector says at one step, with its numbers. Evidence, not yet an incident.

    Attributes:
        kind: One of the four incident kinds, or a kind of notice.
        step: The step whose data made the detector decide.
        onset_step: First step at which, looking back, it began; at most ``step``.
        severity: How much it matters.
        rank: Rank that reported the step.
        tensors: Names of the tensors it is about; empty when only the run as a whole is judged.
        first_tensor: Where it began, or None when that cannot be told.
        observed: The value that was judged.
        expected: Its usual level.
        score: How far beyond usual: 1 is the limit of the rule that decided.
        cause: Reason code such as ``"learning_rate_change"``, or ``"unknown"``.
        evidence: Numbers behind the cause, for the card.
    """

    kind: Kind | NoticeKind
    step: int
    onset_step: int
    severity: Severity
    rank: int = 0
    tensors: tuple[str, ...] = ()
    first_tensor: str | None = None
    observed: float = 0.0
    expected: float = 0.0
    score: float = 0.0
    cause: str = "unknown"
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)


State = TypeVar("State")


class Analysis(Protocol[State]):
    """A state machine over steps, free of clock, thread, HTTP and store.

    ``advance`` gives the same state and findings however the rows are split, and never changes the
    state it is given, so that a snapshot may be kept by keeping the object.

    Attributes:
        name: Names it in snapshots; no other may have it.
        version: Version of its state.

    One that has an attribute ``columns`` is given these tensor statistics at least, without it all.
    """

    name: str
    version: int

    def start(self, context: RunContext) -> State:
        """State before the first step."""

    def advance(self, state: State, rows: StepRows) -> tuple[State, list[Finding]]:
        """State after the rows, and what was found, in step order."""

    def dump(self, state: State) -> bytes:
        """Write the state; small, and :meth:`load` restores it bit for bit."""

    def load(self, data: bytes) -> State:
        """Read what :meth:`dump` wrote.

        Raises:
            UnknownStateVersion: Another version wrote it: the caller replays.
        """
