"""Whatever arrives, decoding answers with a report or with WireError; nothing else, nothing large."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch_wire import (
    Manifest,
    Problem,
    UnknownVersionError,
    WireError,
    check,
    decode,
    encode,
    report_from_json,
)

GOLDEN = (Path(__file__).parent / "golden" / "report-v1.bin").read_bytes()
SPELLED = json.loads((Path(__file__).parent / "golden" / "report-v1.json").read_text())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def judged(read: Callable[[], object]) -> tuple[Problem, ...]:
    """What WireError says; whatever else is raised fails the test."""
    try:
        read()
    except WireError as error:
        # Empty would be a refusal without a reason.
        return error.problems or (Problem("", ""),)
    return ()


def read(body: bytes) -> None:
    """Read as the service does; only WireError may come out, with its reasons."""
    problems = judged(lambda: check(decode(body), tensors=2))
    assert all(problem.at and problem.why for problem in problems)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(body: bytes) -> None:
    read(body)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255))
def test_one_changed_byte_never_raises_anything_else(at: int, value: int) -> None:
    read(GOLDEN[:at] + bytes([value]) + GOLDEN[at + 1 :])


def test_a_body_cut_anywhere_is_refused() -> None:
    for length in range(len(GOLDEN)):
        with pytest.raises(WireError):
            decode(GOLDEN[:length])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SPELLED)), json_values)
def test_any_json_value_in_any_field_never_raises_anything_else(field: str, value: Any) -> None:
    for spelled in (SPELLED | {field: value}, value):
        problems = judged(lambda given=spelled: check(report_from_json(given), tensors=2))
        assert all(problem.at and problem.why for problem in problems)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["tensors", "policy", "tags", "name", "session", "rank"]), json_values)
def test_any_json_value_in_a_manifest_never_raises_anything_else(field: str, value: Any) -> None:
    body: Any = {"tensors": [{"name": "w", "shape": [2], "dtype": "float32"}], field: value}
    for given_ in (
        body,
        value,
        {"tensors": [value]},
        {"tensors": [{"name": value, "shape": value}]},
    ):
        problems = judged(lambda body=given_: Manifest.from_json(body))
        assert all(problem.at and problem.why for problem in problems)


def header(**changes: Any) -> bytes:
    text = json.dumps({"manifest": "0" * 16, "steps": [1], **changes}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


@pytest.mark.parametrize(
    ("body", "at"),
    [
        pytest.param(b"", "header", id="empty"),
        pytest.param((2**64 - 1).to_bytes(8, "little"), "header", id="huge header length"),
        pytest.param(
            (2**62).to_bytes(8, "little") + bytes(99), "header", id="header longer than body"
        ),
        pytest.param((2).to_bytes(8, "little") + b"[]", "body", id="header is no object"),
        pytest.param(
            (4).to_bytes(8, "little") + b"\xff\xfe\x00\x00", "header", id="header is no text"
        ),
        pytest.param(
            (40000).to_bytes(8, "little") + b"[" * 40000, "header", id="header nested too deep"
        ),
        pytest.param(
            header(steps={"dtype": "i8", "shape": [2**40], "offset": 0}),
            "steps.offset",
            id="shape beyond the body",
        ),
        pytest.param(
            header(steps={"dtype": "i8", "shape": [-1], "offset": 0}),
            "steps.shape",
            id="negative shape",
        ),
        pytest.param(
            header(steps={"dtype": "i8", "shape": [1, 1], "offset": 0}),
            "steps.shape",
            id="too many dimensions",
        ),
        pytest.param(
            header(steps={"dtype": "i8", "shape": [1], "offset": -8}),
            "steps.offset",
            id="negative offset",
        ),
        pytest.param(
            header(steps={"dtype": "i8", "shape": [1], "offset": 60}),
            "steps.offset",
            id="offset near the end",
        ),
        pytest.param(
            header(steps={"dtype": "f4", "shape": [1], "offset": 0}),
            "steps.dtype",
            id="wrong dtype",
        ),
        pytest.param(
            header(steps={"dtype": ["i8"], "shape": [1], "offset": 0}),
            "steps.dtype",
            id="dtype is no text",
        ),
        pytest.param(
            header(
                tensors={f"c{i}": {"dtype": "f4", "shape": [4, 4], "offset": 0} for i in range(3)}
            ),
            "tensors.c1.offset",
            id="columns share their bytes",
        ),
        pytest.param(
            header(tensors={f"c{i}": [[1]] for i in range(40)}), "tensors", id="too many columns"
        ),
        pytest.param(header(manifest="xyz"), "manifest", id="no hash"),
        pytest.param(header(rank=-1), "rank", id="negative rank"),
        pytest.param(header(attempt=True), "attempt", id="a boolean is no number"),
    ],
)
def test_each_fault_is_refused_and_named(body: bytes, at: str) -> None:
    with pytest.raises(WireError) as caught:
        check(decode(body), tensors=1)
    assert at in {problem.at for problem in caught.value.problems}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400, 1e39, "1", True, [1], {}])
def test_what_is_no_finite_number_is_refused_where_it_stands(number: Any) -> None:
    with pytest.raises(WireError) as caught:
        report_from_json({"manifest": "0" * 16, "steps": [1], "tensors": {"norm": [[0.5, number]]}})
    assert caught.value.problems[0].at == "tensors.norm[0][1]"


def test_null_in_norm_is_refused_by_the_json_form() -> None:
    spelled = SPELLED | {"tensors": {"norm": [[None, 1.0]] * len(SPELLED["steps"])}}
    with pytest.raises(WireError, match=r"tensors\.norm"):
        report_from_json(spelled)


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(WireError) as caught:
        report_from_json({"steps": "x", "rank": -1, "manifest": "?", "scalars": {"loss": ["y"]}})
    places = {problem.at for problem in caught.value.problems}
    assert places == {"steps", "rank", "manifest", "scalars.loss[0]"}


@pytest.mark.parametrize("version", [0, 2, "1", 1.5, True, {}])
def test_another_version_says_which_are_supported(version: Any) -> None:
    with pytest.raises(UnknownVersionError) as caught:
        report_from_json(SPELLED | {"version": version})
    assert caught.value.supported == (1,)
    assert "supported: 1" in str(caught.value)


def test_a_ragged_histogram_cannot_grow_beyond_its_bins() -> None:
    long = [[[1] * 100_000, [1]]]
    with pytest.raises(WireError, match=r"histograms\.counts"):
        report_from_json(SPELLED | {"histograms": SPELLED["histograms"] | {"counts": long}})


def test_decoding_copies_nothing() -> None:
    report = decode(GOLDEN)
    assert isinstance(report.tensors["norm"].data, memoryview)
    assert report.tensors["norm"].data.obj is GOLDEN


def test_shuffled_columns_read_the_same() -> None:
    """Offsets count, not the order of the fields."""
    length = int.from_bytes(GOLDEN[:8], "little")
    fields = json.loads(GOLDEN[8 : 8 + length])
    for name in ("tensors", "scalars"):
        pairs = list(fields[name].items())
        random.Random(3).shuffle(pairs)
        fields[name] = dict(pairs)
    text = json.dumps(fields).encode()
    shuffled = decode(len(text).to_bytes(8, "little") + text + GOLDEN[8 + length :])
    assert shuffled == decode(GOLDEN)
    assert encode(shuffled) != GOLDEN
