"""Steps with known troubles, and a store in memory that hands them over in any order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gradwatch_service.analysis.run_analysis import RunAnalysis
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Gap, Stream
from gradwatch_wire import Manifest, TensorInfo

NAMES = ("embed.weight", "body.weight", "body.bias", "head.weight")
MANIFEST = Manifest(
    tensors=tuple(
        TensorInfo(
            name=name, shape=(8, 8) if "weight" in name else (8,), dtype="float32", group="g"
        )
        for name in NAMES
    )
)


def healthy_rows(
    steps: int, *, seed: int = 0, first: int = 0, tensors: int = len(NAMES)
) -> StepRows:
    """Rows of calm training: log-normal norms, a falling loss, cosines around 0.2."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.2, (steps, 1))
    norm = np.exp(common + rng.normal(0, 0.1, (steps, tensors)))
    names = NAMES if tensors == len(NAMES) else tuple(f"t{i}.weight" for i in range(tensors))
    manifest = MANIFEST
    if tensors != len(NAMES):
        infos = (TensorInfo(name=n, shape=(8, 8), dtype="float32", group="g") for n in names)
        manifest = Manifest(tensors=tuple(infos))
    return StepRows(
        attempt=0,
        optimizer="default",
        rank=0,
        steps=np.arange(first, first + steps),
        time=np.zeros(steps),
        scalars={
            "loss": 2.0 + rng.normal(0, 0.1, steps),
            "learning_rate": np.full(steps, 0.1),
            "cosine_previous": 0.2 + rng.normal(0, 0.1, steps),
        },
        tensors={
            "norm": norm.astype(np.float32),
            "nonfinite_count": np.zeros((steps, tensors), np.int64),
        },
        manifest=manifest,
    )


def changed(rows: StepRows, *, tensors: Mapping[str, Any] = {}, **scalars: Any) -> StepRows:
    """Return a copy of the rows with other columns."""
    return replace(rows, tensors={**rows.tensors, **tensors}, scalars={**rows.scalars, **scalars})


def troubled_rows(steps: int = 200, seed: int = 0) -> StepRows:
    """Calm training with a spike, a NaN that spreads, a layer that dies, and a learning-rate jump."""
    rows = healthy_rows(steps, seed=seed)
    norm = rows.tensors["norm"].copy()
    bad = rows.tensors["nonfinite_count"].copy()
    loss, rate = rows.scalars["loss"].copy(), rows.scalars["learning_rate"].copy()
    norm[60, 3] *= 200
    bad[85, :2] = [1, 3]
    norm[110:130, 1] = 0
    rate[150:156] *= 30
    norm[151:156] *= 8
    loss[151:156] += 3
    return changed(
        rows, tensors={"norm": norm, "nonfinite_count": bad}, loss=loss, learning_rate=rate
    )


@dataclass
class MemoryStore:
    """The part of a store that analysis uses. Deliveries appear as they are given."""

    deliveries: dict[tuple[int, int], StepRows] = field(default_factory=dict)  # rank, sequence
    kept: dict[str, dict[str, bytes]] = field(default_factory=dict)
    numbered: bool = True

    def deliver(self, sequence: int, rows: StepRows) -> None:
        """Commit one delivery; a repeat changes nothing."""
        self.deliveries.setdefault((rows.rank, sequence), rows)

    def _of(self, rank: int) -> list[tuple[int, StepRows]]:
        found = [(s, rows) for (r, s), rows in self.deliveries.items() if r == rank]
        return sorted(found, key=lambda item: int(item[1].steps[0]))

    def streams(self, run: str) -> list[Stream]:
        ranks = sorted({rank for rank, _ in self.deliveries})
        found = []
        for rank in ranks:
            parts = [rows for _, rows in self._of(rank)]
            first, last = int(parts[0].steps[0]), int(parts[-1].steps[-1])
            count = sum(map(len, parts))
            found.append(Stream(0, "default", rank, parts[0].manifest, first, last, count, None))
        return found

    def gaps(self, run: str, attempt: int) -> dict[int, Gap]:
        if not self.numbered:
            return {}
        found = {}
        for rank in {rank for rank, _ in self.deliveries}:
            parts = dict(self._of(rank))
            contiguous = -1
            while contiguous + 1 in parts:
                contiguous += 1
            whole = [int(parts[s].steps[-1]) for s in range(contiguous + 1)]
            steps = {"default": max(whole)} if whole else {}
            found[rank] = Gap(contiguous, max(parts), steps)
        return found

    def read(
        self,
        run: str,
        *,
        attempt: int,
        optimizer: str,
        rank: int,
        start: int | None = None,
        end: int | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
        histograms: bool = True,
    ) -> Iterator[StepRows]:
        left = limit if limit is not None else 1 << 60
        for _, rows in self._of(rank):
            inside = np.flatnonzero((rows.steps >= (start or 0)) & (rows.steps <= (end or 0)))
            if len(inside) and left:
                part = rows.cut(int(inside[0]), int(inside[-1]) + 1)
                part = part.cut(0, min(len(part), left))
                left -= len(part)
                yield part

    def documents(self, run: str, collection: str) -> dict[str, bytes]:
        return dict(self.kept.get(collection, {}))

    def save(self, run: str, changes: Mapping[str, Mapping[str, bytes | None]]) -> None:
        for collection, documents in changes.items():
            kept = self.kept.setdefault(collection, {})
            for key, data in documents.items():
                kept.pop(key, None)
                if data is not None:
                    kept[key] = data

    def run(self, run: str) -> Any:
        return type("Record", (), {"dropped": {}})


def analysis_of(store: MemoryStore, *, snapshot_steps: int = 16) -> RunAnalysis:
    """Return the analysis of the one run in the store, as a process that just started has it."""
    return RunAnalysis("run", store, gap_seconds=30, snapshot_steps=snapshot_steps)  # type: ignore[arg-type]  # the part of Store that it uses


def told(analysis: RunAnalysis) -> list[dict[str, Any]]:
    """Return what others are told in the end, without how it came about."""
    found = []
    for incident in analysis.log.all():
        if incident.status != "retracted":
            item = incident.to_json()
            del item["revision"], item["provisional"]
            found.append(item)
    return sorted(found, key=lambda item: item["id"])


def settle(analysis: RunAnalysis, now: float) -> None:
    """Tick until nothing is left to do at this reading of the clock."""
    while analysis.tick(now)[1] == now:
        pass
