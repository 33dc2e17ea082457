import math
import pickle

import pytest

from gradwatch import Clipper, clip
from gradwatch.clipping.policies import Norm, Value, policy_to_json
from gradwatch.errors import PolicyError

ALL = [
    clip.value(1.0),
    clip.norm(1.0, math.inf),
    clip.per_tensor(0.5),
    clip.agc(0.02, epsilon=1e-2),
    clip.value_rms(6.0),
    clip.recommended(clip.norm(1.0), minimum=0.1, maximum=10.0, interval=5),
    clip.schedule({0: 5.0, 100: clip.norm(1.0)}),
    clip.chain(clip.value(1.0), clip.norm(5.0)),
    clip.chain({"embed*": clip.value(0.1), "*": None}),
]


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_a_policy_survives_pickling_and_cannot_be_changed(policy):
    assert pickle.loads(pickle.dumps(policy)) == policy  # noqa: S301 -- our own bytes
    assert hash(policy) == hash(pickle.loads(pickle.dumps(policy)))  # noqa: S301 -- our own bytes
    with pytest.raises(AttributeError):
        policy.kind = "other"


@pytest.mark.parametrize("bare", [1, 1.0, 0.5], ids=repr)
def test_a_bare_number_is_refused_and_both_meanings_are_named(bare):
    with pytest.raises(PolicyError) as error:
        Clipper(bare)

    assert f"gradwatch.clip.value({bare!r})" in str(error.value)
    assert f"gradwatch.clip.norm({bare!r})" in str(error.value)
    assert isinstance(error.value, TypeError)


@pytest.mark.parametrize(
    "limit", [0, -1.0, math.nan, math.inf, -math.inf, "1", None, True], ids=repr
)
@pytest.mark.parametrize(
    "make",
    [
        clip.value,
        clip.norm,
        clip.per_tensor,
        clip.agc,
        clip.value_rms,
        lambda c: clip.recommended(clip.norm(c)),
        lambda c: clip.schedule({0: c}),
    ],
    ids=["value", "norm", "per_tensor", "agc", "value_rms", "recommended", "schedule"],
)
def test_a_limit_that_is_not_a_finite_number_above_zero_is_refused(make, limit):
    with pytest.raises(PolicyError) as error:
        make(limit)

    assert repr(limit) in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda: clip.norm(1.0, 0), "norm_type=0", id="order zero"),
        pytest.param(lambda: clip.value_rms(0.5), "above 1", id="factor below one"),
        pytest.param(lambda: clip.value_rms(3.0, decay=1.0), "below 1", id="decay of one"),
        pytest.param(clip.chain, "at least one", id="empty chain"),
        pytest.param(lambda: clip.chain(clip.value(1), 2.0), "clip.norm", id="number in a chain"),
        pytest.param(
            lambda: clip.chain(clip.value(1), None), "leave None out", id="None in a chain"
        ),
        pytest.param(lambda: clip.schedule({}), "at least one entry", id="empty schedule"),
        pytest.param(lambda: clip.schedule({-1: 1.0}), "from 0", id="negative step"),
        pytest.param(lambda: clip.schedule({0.5: 1.0}), "whole numbers", id="half a step"),
        pytest.param(lambda: clip.schedule(5.0), "mapping", id="no mapping"),
        pytest.param(
            lambda: clip.schedule({0: None}), "limit or a policy", id="None in a schedule"
        ),
        pytest.param(lambda: clip.recommended(1.0), "clip.value", id="number as base"),
        pytest.param(
            lambda: clip.recommended(clip.chain(clip.value(1))), "threshold", id="chain as base"
        ),
        pytest.param(
            lambda: clip.recommended(clip.norm(1), minimum=2, maximum=1),
            "above the maximum",
            id="bounds",
        ),
        pytest.param(lambda: clip.recommended(clip.norm(1), interval=0), "from 1", id="interval"),
        pytest.param(lambda: Clipper({}), "clips nothing", id="empty mapping"),
        pytest.param(lambda: Clipper({1: clip.value(1)}), "encoder", id="pattern that is no text"),
        pytest.param(lambda: Clipper({"a": clip.value(1)}), "named_parameters", id="no names"),
        pytest.param(lambda: Clipper("value"), "not a policy", id="text"),
        pytest.param(lambda: Clipper(None, nonfinite="drop"), "keep, zero, skip", id="nonfinite"),
    ],
)
def test_a_policy_that_makes_no_sense_says_what_would(make, says):
    with pytest.raises(PolicyError, match=says):
        make()


def test_the_manifest_form_names_kind_and_threshold():
    assert policy_to_json(None) is None
    assert policy_to_json(clip.value(1)) == {"kind": "value", "threshold": 1.0}
    assert policy_to_json(clip.norm(2, math.inf)) == {
        "kind": "norm",
        "threshold": 2.0,
        "norm_type": "inf",
    }
    assert policy_to_json(clip.chain(clip.value(1), clip.norm(2)))["policies"] == [
        {"kind": "value", "threshold": 1.0},
        {"kind": "norm", "threshold": 2.0, "norm_type": 2.0},
    ]
    assert all(policy_to_json(policy)["kind"] == policy.kind for policy in ALL)


def test_numbers_of_any_kind_make_equal_policies():
    assert clip.value(1) == clip.value(1.0) == Value(1)
    assert isinstance(clip.norm(1).max_norm, float)
    assert Norm(1) != Norm(1, 1)
