"""Analysis of one (run, attempt, optimizer): every rank's rows in step order, one tracker.

Knows no clock and no thread. Holds the states in memory and gives snapshots of them as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gradwatch_service.analysis.incidents import Incident, IncidentTracker
from gradwatch_service.detectors.base import Finding, RunContext, UnknownStateVersion
from gradwatch_service.detectors.diagnosis import find_facts
from gradwatch_service.detectors.registry import DETECTORS
from gradwatch_service.detectors.replicas import (
    Replicas,
    ReplicaState,
    note_nonfinite,
    split_checks,
    without_told,
)
from gradwatch_service.detectors.state_bytes import pack, unpack
from gradwatch_service.recommenders.norm import NormRecommender, NormState
from gradwatch_service.rows import StepRows

__all__ = ["OptimizerAnalysis", "OptimizerState"]

VERSION: Final = 1
_RECOMMENDER: Final = NormRecommender()
_REPLICAS: Final = Replicas()


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """Everything that analysis remembers after ``position``; never changed in place.

    Attributes:
        context: The stream, as the lowest rank registered it.
        position: Newest step taken in; -1 before the first.
        steps: Steps taken in.
        tracker: Open incidents.
        recommender: State of the recommendation, over the lowest rank's rows.
        ranks: State of every detector for each rank.
        replicas: State of the comparison between ranks.
        certain: No earlier report can be missing.
    """

    context: RunContext
    position: int
    steps: int
    tracker: IncidentTracker
    recommender: NormState
    ranks: Mapping[int, tuple[Any, ...]] = field(default_factory=dict)
    replicas: ReplicaState = field(default_factory=ReplicaState)
    certain: bool = True


class OptimizerAnalysis:
    """The pure step of analysis: a state and the next rows give the next state and incidents."""

    @staticmethod
    def start(context: RunContext) -> OptimizerState:
        """State before the first step."""
        return OptimizerState(
            context=context,
            position=-1,
            steps=0,
            tracker=IncidentTracker(context),
            recommender=_RECOMMENDER.start(context),
        )

    @staticmethod
    def advance(
        state: OptimizerState, rows: Mapping[int, Iterable[StepRows]], end: int, *, certain: bool
    ) -> tuple[OptimizerState, list[Incident]]:
        """Take in every rank's rows above ``state.position`` up to ``end``.

        Args:
            state: State so far.
            rows: Rank to its rows in step order, in blocks of any size.
            end: Newest step taken in.
            certain: No report of these steps is missing.

        Returns:
            The next state, and the incidents that changed.
        """
        findings: list[Finding] = []
        ranks = dict(state.ranks)
        blocks = {rank: [block for block in rows[rank] if len(block)] for rank in sorted(rows)}
        lowest = min(blocks, default=0)
        recommender = state.recommender
        replicas = note_nonfinite(state.replicas, blocks.get(lowest, []))
        for rank, parts in blocks.items():
            states = ranks.get(rank) or _fresh(replace(state.context, rank=rank))
            for block in parts:
                if rank == lowest:
                    recommender, _ = _RECOMMENDER.advance(recommender, block)
                for piece, check_only in split_checks(block, replica=rank != lowest):
                    if check_only:
                        findings += find_facts(without_told(replicas, piece))
                    else:
                        states, found = _advance_all(states, piece)
                        findings += found
            ranks[rank] = states
        replicas, apart = _REPLICAS.advance(replicas, blocks)
        steps = sorted({int(s) for parts in blocks.values() for b in parts for s in b.steps})
        tracker, changed = state.tracker.advance(
            steps, _on_one_rank([*findings, *apart], blocks), provisional=not certain
        )
        following = replace(
            state,
            position=max(end, state.position),
            steps=state.steps + len(steps),
            tracker=tracker,
            recommender=recommender,
            ranks=ranks,
            replicas=replicas,
            certain=state.certain and certain,
        )
        return following, changed

    @staticmethod
    def dump(state: OptimizerState) -> bytes:
        """Write a snapshot that :meth:`load` restores bit for bit."""
        return pack(
            {
                "version": VERSION,
                "position": state.position,
                "steps": state.steps,
                "certain": state.certain,
                "ranks": sorted(state.ranks),
                "tracker": state.tracker.dump(),
                "recommender": _RECOMMENDER.dump(state.recommender),
                "replicas": _REPLICAS.dump(state.replicas),
                **{
                    f"rank {rank} {detector.name}": detector.dump(part)
                    for rank, states in sorted(state.ranks.items())
                    for detector, part in zip(DETECTORS, states, strict=True)
                },
            }
        )

    @staticmethod
    def load(context: RunContext, data: bytes) -> OptimizerState:
        """Read what :meth:`dump` wrote.

        Raises:
            UnknownStateVersion: Another version wrote it, or it is damaged: replay the steps.
        """
        try:
            values: dict[str, Any] = unpack(data)
            version = values["version"]
            if version == VERSION:
                return _restored(context, values)
        except UnknownStateVersion:
            raise
        except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
            raise UnknownStateVersion(f"damaged snapshot: {error}") from error
        raise UnknownStateVersion(f"snapshot of version {version!r}")


def _restored(context: RunContext, values: Mapping[str, Any]) -> OptimizerState:
    return OptimizerState(
        context=context,
        position=values["position"],
        steps=values["steps"],
        certain=values["certain"],
        tracker=IncidentTracker.load(context, values["tracker"]),
        recommender=_RECOMMENDER.load(values["recommender"]),
        replicas=_REPLICAS.load(values["replicas"]),
        ranks={
            rank: tuple(d.load(values[f"rank {rank} {d.name}"]) for d in DETECTORS)
            for rank in values["ranks"]
        },
    )


def _fresh(context: RunContext) -> tuple[Any, ...]:
    return tuple(detector.start(context) for detector in DETECTORS)


def _advance_all(states: tuple[Any, ...], rows: StepRows) -> tuple[tuple[Any, ...], list[Finding]]:
    following, findings = [], []
    for detector, state in zip(DETECTORS, states, strict=True):
        after, found = detector.advance(state, rows)
        following.append(after)
        findings += found
    return tuple(following), findings


def _on_one_rank(findings: list[Finding], blocks: Mapping[int, list[StepRows]]) -> list[Finding]:
    """Name the rank where several reported a step and only one of them saw something wrong."""
    if len(blocks) < 2:
        return findings
    reported: dict[int, set[int]] = {
        rank: {int(s) for block in parts for s in block.steps} for rank, parts in blocks.items()
    }
    affected: dict[tuple[str, int], set[int]] = {}
    for finding in findings:
        affected.setdefault((finding.kind, finding.step), set()).add(finding.rank)
    named = []
    for finding in findings:
        watchers = sum(finding.step in steps for steps in reported.values())
        alone = watchers > 1 and len(affected[finding.kind, finding.step]) == 1
        if alone and finding.kind == "nonfinite" and finding.severity != "info":
            evidence = {**finding.evidence, "one_rank": 1, "ranks_reporting": watchers}
            named.append(replace(finding, cause="one_rank", evidence=evidence))
        else:
            named.append(finding)
    return named
