"""Every length of a report is checked against its manifest."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradwatch_wire import WireError, check, report_from_json

SPELLED = json.loads((Path(__file__).parent / "golden" / "report-v1.json").read_text())
STEPS = len(SPELLED["steps"])


def problems(**changes: Any) -> dict[str, str]:
    """What is wrong with the recorded report after changes, by field."""
    report = report_from_json(SPELLED | changes)
    try:
        check(report, tensors=2)
    except WireError as error:
        return {problem.at: problem.why for problem in error.problems}
    return {}


def test_the_recorded_report_fits_its_manifest() -> None:
    assert problems() == {}


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"steps": [5, 5, 6]}, "steps"),
        ({"steps": [6, 5, 7]}, "steps"),
        ({"steps": [-1, 5, 7]}, "steps"),
        ({"steps": [1, 2, 2**53]}, "steps"),
        ({"scalars": {"loss": [1.0]}}, "scalars.loss"),
        ({"tensors": {"norm": [[1.0, 2.0, 3.0]] * STEPS}}, "tensors.norm"),
        ({"tensors": {"norm": [[1.0, 2.0]]}}, "tensors.norm"),
        ({"tensors": {"max_abs": [[1.0, 2.0]] * STEPS}}, "tensors.norm"),
        ({"time": [1.0]}, "time"),
        ({"histograms": SPELLED["histograms"] | {"steps": [99]}}, "histograms.steps"),
        (
            {
                "histograms": SPELLED["histograms"]
                | {"bins_per_octave": 1, "counts": [[[1] * 65] * 2]}
            },
            "histograms.counts",
        ),
        ({"partial": {"ranks": [5], "weights": [1, 1], "local_numel": [1, 1]}}, "partial.ranks"),
        ({"partial": {"ranks": [0], "weights": [1], "local_numel": [1, 1]}}, "partial.weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_length_that_does_not_fit_is_named(changes: dict[str, Any], at: str) -> None:
    assert at in problems(**changes)


def test_an_empty_delivery_needs_no_columns() -> None:
    report = report_from_json({"manifest": "0" * 16, "steps": [], "dropped": {"queue_full": 7}})
    check(report, tensors=2)
    assert report.dropped == {"queue_full": 7}


def test_empty_columns_of_an_empty_delivery_fit() -> None:
    assert (
        problems(steps=[], scalars={"loss": []}, tensors={"norm": []}, time=[], histograms=None)
        == {}
    )


def test_a_manifest_without_tensors_takes_steps_of_scalars() -> None:
    report = report_from_json(
        {"manifest": "0" * 16, "steps": [1, 2], "tensors": {"norm": [[], []]}}
    )
    check(report, tensors=0)
