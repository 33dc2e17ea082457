"""A recorded run, posted over REST as a script would, with the numbers kept for comparison."""

from __future__ import annotations

from typing import Any

import numpy as np

TENSORS = (
    {"name": "encoder.0.weight", "shape": [8, 8], "dtype": "float32", "group": "encoder.0"},
    {"name": "encoder.1.weight", "shape": [64], "dtype": "float32", "group": "encoder.1"},
    {"name": "head.weight", "shape": [10, 10], "dtype": "float32", "group": "head"},
)
SIZES = np.array([64, 64, 100])


def post_run(
    service: Any,
    run: str,
    columns: dict[str, Any],
    *,
    scalars: dict[str, Any] | None = None,
    first_step: int = 0,
    per_delivery: int = 64,
    manifest: dict[str, Any] | None = None,
    histograms: dict[str, Any] | None = None,
    finish: bool = True,
    **identity: Any,
) -> None:
    """Register a run of three tensors, post its columns and wait until all is analysed.

    Args:
        service: The fixture.
        run: Run id.
        columns: Name to [n, T] values; None or NaN where not measured.
        scalars: Name to [n] values.
        first_step: Step of the first row.
        per_delivery: Steps per delivery.
        manifest: More fields of the manifest.
        histograms: Histograms, sent with the first delivery.
        finish: Whether to finish the run, which waits for the analysis.
        identity: ``session`` and the like.
    """
    body = {"tensors": list(TENSORS), **identity, **(manifest or {})}
    known = service.http.put(service.api(f"runs/{run}"), json=body)
    assert known.status_code in {200, 201}, known.text
    rows = len(next(iter(columns.values())))
    for sequence, at in enumerate(range(0, rows, per_delivery)):
        cut = slice(at, at + per_delivery)
        report = {
            "attempt": known.json()["attempt"],
            "optimizer": body.get("optimizer", "default"),
            "rank": 0,
            "sequence": sequence,
            "manifest": known.json()["manifest"],
            "steps": list(range(first_step, first_step + rows))[cut],
            "tensors": {k: plain(np.asarray(v)[cut]) for k, v in columns.items()},
            "scalars": {k: plain(np.asarray(v)[cut]) for k, v in (scalars or {}).items()},
        }
        if histograms and sequence == 0:
            report["histograms"] = histograms
        answer = service.http.post(service.api(f"runs/{run}/reports"), json=report)
        assert answer.status_code == 200, answer.text
    if finish:
        ended = service.http.post(service.api(f"runs/{run}/finish"), json={"status": "completed"})
        assert ended.status_code == 200, ended.text


def plain(values: Any) -> list[Any]:
    """Nested lists with null for NaN."""
    found = np.asarray(values, object)
    return np.where(found != found, None, found).tolist()  # noqa: PLR0124 - NaN alone differs


def get(service: Any, path: str, **query: Any) -> Any:
    """The answer of a GET that must succeed."""
    answer = service.http.get(service.api(path), params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def random_norms(steps: int, seed: int = 0, sigma: float = 0.3) -> np.ndarray:
    """[steps, 3] lognormal norms as float32 keeps them."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(0, sigma, (steps, 3))).astype(np.float32).astype(float)
