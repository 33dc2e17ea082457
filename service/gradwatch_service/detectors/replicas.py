"""Ranks that ought to hold the same gradient, compared step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import Finding, UnknownStateVersion
from gradwatch_service.detectors.state_bytes import pack, unpack
from gradwatch_service.measures import nonfinite_count, scalar
from gradwatch_service.rows import StepRows

__all__ = ["ReplicaState", "Replicas", "note_nonfinite", "split_checks", "without_told"]

TOLERANCE: Final = 1e-3  # relative; replicas agree to the last bits, shards are far apart
CHECKSUM_TOLERANCE: Final = 1e-9
NONFINITE_KEPT: Final = 256  # newest reports of the lowest rank with NaN or Inf
CONFIRM_STEPS: Final = 8  # steps of agreement that show these ranks to be replicas of one another


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What the comparison remembers.

    Attributes:
        agreed: Steps at which each rank agreed with the lowest one, up to what confirms it as a
            replica. One agreement of the parameters' checksum is worth as much: it cannot be chance.
        nonfinite: Newest reports of the lowest rank with NaN or Inf: step, and how many steps.
    """

    agreed: Mapping[int, int] = field(default_factory=dict)
    nonfinite: tuple[tuple[int, int], ...] = ()


class Replicas:
    """Finds ranks whose gradients part from one another.

    Ranks of data-parallel training report the same reduced gradient; ranks of a pipeline or
    of training without reduction never do. Only ranks that agreed before can come apart. Reduced
    gradients stay alike even when the parameters have drifted, so clients also send a checksum
    of the parameters (scalar ``weight_checksum``) every few steps.
    """

    version = 2

    def advance(
        self, state: ReplicaState, blocks: Mapping[int, Sequence[StepRows]]
    ) -> tuple[ReplicaState, list[Finding]]:
        """Compare every rank with the lowest one at the steps that both reported."""
        if len(blocks) < 2:
            return state, []
        lowest, *others = sorted(blocks)
        reference = _by_step(blocks[lowest])
        agreed = dict(state.agreed)
        found: list[Finding] = []
        for rank in others:
            for step, report in sorted(_by_step(blocks[rank]).items()):
                expected = reference.get(step)
                if expected is None or report.names != expected.names:
                    continue
                verdict = _compare(report, expected)
                if verdict.agree:
                    agreed[rank] = min(CONFIRM_STEPS, agreed.get(rank, 0) + verdict.worth)
                elif agreed.get(rank, 0) >= CONFIRM_STEPS:
                    found.append(_finding(step, rank, report, expected))
        return replace(state, agreed=agreed), found

    def dump(self, state: ReplicaState) -> bytes:
        """Write the state."""
        pairs = {str(rank): count for rank, count in sorted(state.agreed.items())}
        return pack({"version": self.version, "agreed": pairs, "nonfinite": state.nonfinite})

    def load(self, data: bytes) -> ReplicaState:
        """Read what :meth:`dump` wrote.

        Raises:
            UnknownStateVersion: Another version wrote it.
        """
        values: dict[str, Any] = unpack(data)
        if values.get("version") != self.version:
            raise UnknownStateVersion(f"replica state {values.get('version')!r}")
        return ReplicaState(
            {int(rank): count for rank, count in values["agreed"].items()},
            tuple((int(step), int(steps)) for step, steps in values["nonfinite"]),
        )


def split_checks(rows: StepRows, *, replica: bool) -> Iterator[tuple[StepRows, bool]]:
    """Cut rows into pieces, each with whether it holds mere checks of a replica.

    Replicas report every few steps, with a checksum: too sparse to judge norms by, and the lowest
    rank reports the same norms at every step.
    """
    checksum = rows.scalars.get("weight_checksum")
    if not replica or checksum is None:
        yield rows, False
        return
    checks = np.isfinite(checksum)
    borders = [0, *(np.flatnonzero(checks[1:] != checks[:-1]) + 1).tolist(), len(rows)]
    for start, stop in pairwise(borders):
        yield rows.cut(start, stop), bool(checks[start])


def note_nonfinite(state: ReplicaState, blocks: Sequence[StepRows]) -> ReplicaState:
    """Remember at which steps the lowest rank saw NaN or Inf."""
    seen = []
    for rows in blocks:
        since = np.nan_to_num(scalar(rows, "nonfinite_steps_since"))
        steps = np.maximum(since, nonfinite_count(rows) > 0)
        seen += [(int(rows.steps[i]), int(steps[i])) for i in np.flatnonzero(steps > 0)]
    return replace(state, nonfinite=(*state.nonfinite, *seen)[-NONFINITE_KEPT:]) if seen else state


def without_told(state: ReplicaState, checks: StepRows) -> StepRows:
    """Leave out of a replica's checks the non-finite steps that the lowest rank has told of.

    A NaN that the reduction spreads is every rank's, and a replica counts it at its next check,
    many steps later: only what it counted beyond that is its own.
    """
    since = np.nan_to_num(scalar(checks, "nonfinite_steps_since"))
    if not (since > 0).any():
        return checks
    window = np.nan_to_num(scalar(checks, "steps_since"))
    told = [
        sum(steps for at, steps in state.nonfinite if step - span < at <= step)
        for step, span in zip(checks.steps.tolist(), window.tolist(), strict=True)
    ]
    own = np.maximum(0.0, since - told)
    return replace(checks, scalars={**checks.scalars, "nonfinite_steps_since": own})


@dataclass(frozen=True, slots=True, eq=False)
class _Report:
    """What one rank said at one step."""

    names: tuple[str, ...]
    norms: NDArray[np.float64]
    checksum: float


class _Verdict(NamedTuple):
    agree: bool
    worth: int


def _by_step(blocks: Sequence[StepRows]) -> dict[int, _Report]:
    found = {}
    for rows in blocks:
        norms = rows.tensors.get("norm")
        if norms is None:
            continue
        names = tuple(tensor.name for tensor in rows.manifest.tensors)
        checksums = scalar(rows, "weight_checksum")
        for i, step in enumerate(rows.steps.tolist()):
            found[step] = _Report(names, norms[i].astype(np.float64), float(checksums[i]))
    return found


def _compare(report: _Report, expected: _Report) -> _Verdict:
    checked = math.isfinite(report.checksum) and math.isfinite(expected.checksum)
    if checked and not math.isclose(report.checksum, expected.checksum, rel_tol=CHECKSUM_TOLERANCE):
        return _Verdict(agree=False, worth=0)
    return _Verdict(agree=not len(_apart(report, expected)), worth=CONFIRM_STEPS if checked else 1)


def _apart(report: _Report, expected: _Report) -> NDArray[np.int64]:
    limit = TOLERANCE * np.maximum(report.norms, expected.norms) + 1e-30
    return np.flatnonzero(np.abs(report.norms - expected.norms) > limit)


def _finding(step: int, rank: int, report: _Report, expected: _Report) -> Finding:
    apart = _apart(report, expected)
    names = tuple(report.names[int(i)] for i in apart)
    observed, usual = report.checksum, expected.checksum
    if len(apart):
        worst = int(apart[np.argmax(np.abs(report.norms - expected.norms)[apart])])
        observed, usual = float(report.norms[worst]), float(expected.norms[worst])
    return Finding(
        kind="replicas_apart",
        step=step,
        onset_step=step,
        severity="critical",
        rank=rank,
        tensors=names,
        first_tensor=names[-1] if names else None,
        observed=observed,
        expected=usual,
        score=1.0 + abs(observed - usual) / max(abs(usual), 1e-30),
        cause="gradients_differ" if len(apart) else "parameters_differ",
    )
