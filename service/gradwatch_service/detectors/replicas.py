"""Ranks that ought to hold the same gradient, compared step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import Finding, UnknownStateVersion
from gradwatch_service.detectors.state_bytes import pack, unpack
from gradwatch_service.rows import StepRows

__all__ = ["ReplicaState", "Replicas"]

TOLERANCE: Final = 1e-3  # relative; replicas agree to the last bits, shards are far apart
CONFIRM_STEPS: Final = 8  # steps of agreement that show these ranks to be replicas of one another


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """Steps at which each rank agreed with the lowest one, up to what confirms it as a replica."""

    agreed: Mapping[int, int] = field(default_factory=dict)


class Replicas:
    """Finds ranks whose gradients part from one another.

    Ranks of data-parallel training report the same reduced gradient; ranks of a pipeline or
    of training without reduction never do. Only ranks that agreed before can come apart.
    """

    version = 1

    def advance(
        self, state: ReplicaState, blocks: Mapping[int, Sequence[StepRows]]
    ) -> tuple[ReplicaState, list[Finding]]:
        """Compare every rank with the lowest one at the steps that both reported."""
        if len(blocks) < 2:
            return state, []
        lowest, *others = sorted(blocks)
        reference = _norms_by_step(blocks[lowest])
        agreed = dict(state.agreed)
        found: list[Finding] = []
        for rank in others:
            for step, (norms, rows) in sorted(_norms_by_step(blocks[rank]).items()):
                if step not in reference:
                    continue
                expected, reference_rows = reference[step]
                if rows.manifest.tensors != reference_rows.manifest.tensors:
                    continue
                apart = _apart(norms, expected)
                if not len(apart):
                    agreed[rank] = min(CONFIRM_STEPS, agreed.get(rank, 0) + 1)
                elif agreed.get(rank, 0) >= CONFIRM_STEPS:
                    found.append(_finding(step, rank, apart, (norms, expected), rows))
        return ReplicaState(agreed), found

    def dump(self, state: ReplicaState) -> bytes:
        """Write the state."""
        pairs = {str(rank): count for rank, count in sorted(state.agreed.items())}
        return pack({"version": self.version, "agreed": pairs})

    def load(self, data: bytes) -> ReplicaState:
        """Read what :meth:`dump` wrote.

        Raises:
            UnknownStateVersion: Another version wrote it.
        """
        values: dict[str, Any] = unpack(data)
        if values.get("version") != self.version:
            raise UnknownStateVersion(f"replica state {values.get('version')!r}")
        return ReplicaState({int(rank): count for rank, count in values["agreed"].items()})


def _norms_by_step(
    blocks: Sequence[StepRows],
) -> dict[int, tuple[NDArray[np.float64], StepRows]]:
    found = {}
    for rows in blocks:
        norms = rows.tensors.get("norm")
        if norms is not None and norms.shape[1]:
            for i, step in enumerate(rows.steps.tolist()):
                found[step] = (norms[i].astype(np.float64), rows)
    return found


def _apart(norms: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.int64]:
    limit = TOLERANCE * np.maximum(norms, expected) + 1e-30
    return np.flatnonzero(np.abs(norms - expected) > limit)


def _finding(
    step: int,
    rank: int,
    apart: NDArray[np.int64],
    values: tuple[NDArray[np.float64], NDArray[np.float64]],
    rows: StepRows,
) -> Finding:
    norms, expected = values
    worst = int(apart[np.argmax(np.abs(norms - expected)[apart])])
    names = [rows.manifest.tensors[int(i)].name for i in apart]
    return Finding(
        kind="replicas_apart",
        step=step,
        onset_step=step,
        severity="critical",
        rank=rank,
        tensors=tuple(names),
        first_tensor=names[-1],
        observed=float(norms[worst]),
        expected=float(expected[worst]),
        score=float(
            abs(norms[worst] - expected[worst]) / (TOLERANCE * max(expected[worst], 1e-30))
        ),
        cause="desync",
    )
