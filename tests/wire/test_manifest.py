"""What a manifest may hold, and what its hash depends on."""

import hashlib
from typing import Any

import pytest

from gradwatch_wire import (
    Manifest,
    TensorInfo,
    WireError,
    default_group,
    is_run_id,
    manifest_hash,
)

TENSOR = {"name": "rnn.weight_ih_l0", "shape": [1024, 256], "dtype": "float32", "group": "rnn"}


def test_the_hash_is_what_the_contract_says() -> None:
    """Computed here by hand, so that a client in another language can do the same."""
    text = '{"optimizer":"default","tensors":[["rnn.weight_ih_l0",[1024,256],"float32","rnn"]]}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert Manifest.from_json({"tensors": [TENSOR]}).hash == expected


def test_the_hash_depends_on_what_columns_stand_for_and_on_nothing_else() -> None:
    one = TensorInfo("w", (2, 3), "float32", "w")
    base = manifest_hash("default", [one])
    assert Manifest((one,), name="x", session="s", tags={"a": "b"}).hash == base
    others = [
        manifest_hash("other", [one]),
        manifest_hash("default", [TensorInfo("v", (2, 3), "float32", "w")]),
        manifest_hash("default", [TensorInfo("w", (3, 2), "float32", "w")]),
        manifest_hash("default", [TensorInfo("w", (2, 3), "bfloat16", "w")]),
        manifest_hash("default", [TensorInfo("w", (2, 3), "float32", "g")]),
        manifest_hash("default", [one, TensorInfo("v", (), "float32", "v")]),
    ]
    assert len({base, *others}) == 7


def test_a_name_beyond_ascii_hashes_as_utf_8() -> None:
    text = '{"optimizer":"default","tensors":[["Größe",[],"float32","Größe"]]}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert manifest_hash("default", [TensorInfo("Größe", (), "float32", "Größe")]) == expected


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("encoder.layers.3.attn.weight", "encoder.layers.3"),
        ("rnn.weight_ih_l0", "rnn"),
        ("0.weight", "0"),
        ("weight", "weight"),
        ("blocks.1.experts.2.w", "blocks.1"),
    ],
)
def test_a_group_ends_with_the_first_number(name: str, group: str) -> None:
    assert default_group(name) == group
    assert (
        Manifest.from_json({"tensors": [TENSOR | {"name": name, "group": None}]}).tensors[0].group
        == group
    )


def test_only_tensors_are_required() -> None:
    manifest = Manifest.from_json({"tensors": []})
    assert (manifest.project, manifest.session, manifest.world_size, manifest.policy) == (
        "default",
        None,
        1,
        None,
    )


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "tensors"),
        ([], "body"),
        ({"tensors": [TENSOR, TENSOR]}, "tensors[1].name"),
        ({"tensors": [TENSOR | {"name": "x" * 513}]}, "tensors[0].name"),
        ({"tensors": [TENSOR | {"name": "ü" * 300}]}, "tensors[0].name"),
        ({"tensors": [TENSOR | {"name": "a\nb"}]}, "tensors[0].name"),
        ({"tensors": [TENSOR | {"name": ""}]}, "tensors[0].name"),
        ({"tensors": [TENSOR | {"shape": [-1]}]}, "tensors[0].shape"),
        ({"tensors": [TENSOR | {"shape": [2**30, 2**30]}]}, "tensors[0].shape"),
        ({"tensors": [TENSOR | {"dtype": "Float 32"}]}, "tensors[0].dtype"),
        ({"tensors": [TENSOR | {"group": "g" * 129}]}, "tensors[0].group"),
        ({"tensors": [], "project": "p" * 129}, "project"),
        ({"tensors": [], "session": "a b"}, "session"),
        ({"tensors": [], "rank": 2, "world_size": 2}, "rank"),
        ({"tensors": [], "extends": "short"}, "extends"),
        ({"tensors": [], "tags": {"a\n": "b"}}, "tags"),
        ({"tensors": [], "policy": "value"}, "policy"),
    ],
)
def test_what_is_out_of_bounds_is_refused_and_named(body: Any, at: str) -> None:
    with pytest.raises(WireError) as caught:
        Manifest.from_json(body)
    assert at in {problem.at for problem in caught.value.problems}


def test_a_tag_given_as_a_number_becomes_its_text() -> None:
    assert Manifest.from_json({"tensors": [], "tags": {"lr": 0.1, "x": "y"}}).tags == {
        "lr": "0.1",
        "x": "y",
    }


@pytest.mark.parametrize("run", ["a", "run-1", "A.b_c-9", "0" * 128])
def test_run_ids(run: str) -> None:
    assert is_run_id(run)


@pytest.mark.parametrize("run", ["", "-a", ".a", "a b", "a/b", "ä", "a\n", "0" * 129])
def test_no_run_ids(run: str) -> None:
    assert not is_run_id(run)
