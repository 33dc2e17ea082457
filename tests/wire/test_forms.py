"""Both forms carry a report unchanged, and their bytes are pinned."""

import json
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from tests.wire.strategies import reports

from gradwatch_wire import (
    TENSOR_COLUMNS,
    Column,
    Manifest,
    Report,
    check,
    decode,
    encode,
    report_from_json,
    report_to_json,
)

GOLDEN = Path(__file__).parent / "golden"


@settings(max_examples=60, deadline=None)
@given(reports())
def test_the_compact_form_carries_every_report_unchanged(drawn: tuple[Report, int]) -> None:
    report, tensors = drawn
    read = decode(encode(report))
    check(read, tensors)
    assert read == report


@settings(max_examples=60, deadline=None)
@given(reports())
def test_the_json_form_carries_every_report_unchanged(drawn: tuple[Report, int]) -> None:
    report, tensors = drawn
    text = json.dumps(report_to_json(report), allow_nan=False)
    read = report_from_json(json.loads(text))
    check(read, tensors)
    assert report_to_json(read) == report_to_json(report)
    assert encode(decode(encode(read))) == encode(read)


def test_version_1_reads_and_writes_the_recorded_bytes() -> None:
    recorded = (GOLDEN / "report-v1.bin").read_bytes()
    spelled = json.loads((GOLDEN / "report-v1.json").read_text())
    report = decode(recorded)
    check(report, tensors=2)
    assert report_to_json(report) == spelled
    assert report_from_json(spelled) == report
    assert encode(report) == recorded


def test_version_1_gives_the_recorded_manifest_its_recorded_hash() -> None:
    recorded = json.loads((GOLDEN / "manifest-v1.json").read_text())
    manifest = Manifest.from_json(recorded["body"])
    assert manifest.hash == recorded["hash"]
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_header_may_keep_short_arrays_as_lists() -> None:
    header = json.dumps(
        {
            "manifest": "0" * 16,
            "steps": [4, 9],
            "scalars": {"loss": [1.5, None]},
            "tensors": {"norm": [[1], [2]]},
        }
    ).encode()
    report = decode(len(header).to_bytes(8, "little") + header)
    check(report, tensors=1)
    assert report_to_json(report)["scalars"] == {"loss": [1.5, None]}


def test_unknown_fields_and_unknown_statistics_are_no_obstacle() -> None:
    spelled = json.loads((GOLDEN / "report-v1.json").read_text())
    spelled["from_the_future"] = {"deep": [1, 2]}
    spelled["tensors"]["entropy"] = [[0.5, -0.25]] * len(spelled["steps"])
    report = report_from_json(spelled)
    check(report, tensors=2)
    assert report.tensors["entropy"].to_list()[0] == [0.5, -0.25]
    assert decode(encode(report)) == report


def test_counts_beyond_32_bits_widen_and_others_stay_narrow() -> None:
    spelled = json.loads((GOLDEN / "report-v1.json").read_text())
    spelled["tensors"]["zero_count"] = [[2**32, 1]] * len(spelled["steps"])
    report = report_from_json(spelled)
    assert report.tensors["zero_count"].dtype == "u8"
    assert report.tensors["zero_count"].to_list()[0] == [2**32, 1]
    assert report.tensors["clipped_count"].dtype == "u4"


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_no_work_is_done_per_number(direction: str) -> None:
    """A hundred thousand numbers cost as many calls as ten do."""

    def calls(steps: int) -> int:
        report = _large(steps, tensors=200)
        body, seen = encode(report), 0

        def count(*_: Any) -> None:
            nonlocal seen
            seen += 1

        sys.setprofile(count)
        if direction == "encode":
            encode(report)
        else:
            decode(body)
        sys.setprofile(None)
        return seen

    assert calls(50) <= calls(1) + 50


def _large(steps: int, tensors: int) -> Report:
    return Report(
        attempt=0,
        rank=0,
        optimizer="default",
        sequence=0,
        manifest="0" * 16,
        steps=Column("i8", (steps,), array("q", range(steps)).tobytes()),
        tensors={
            name: Column(kind.dtypes[0], (steps, tensors), bytes(4 * steps * tensors))
            for name, kind in TENSOR_COLUMNS.items()
            if kind.dtypes[0] != "u1"
        },
    )
