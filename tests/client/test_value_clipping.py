"""Zero-centred clipping is exact: held against plain Python floats, for every kernel and dtype."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import reference
from tests.client.gradient_cases import DTYPES, KERNELS, gradients, limits, values_of

import gradwatch
from gradwatch import clip

torch.set_num_threads(1)

every_kernel = pytest.mark.parametrize("kernel", KERNELS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
thorough = settings(max_examples=50, deadline=None, derandomize=True)  # a gate says the same twice


def clip_value(grad, limit, kernel, nonfinite="keep"):
    parameter = torch.nn.Parameter(torch.zeros_like(grad))
    parameter.grad = grad
    return gradwatch.clip_grad_(
        parameter, clip.value(limit), nonfinite=nonfinite, kernel=kernel
    ).to_dict()


@every_kernel
@every_dtype
@thorough
@given(data=st.data())
def test_every_element_ends_within_the_limit_and_all_others_keep_their_bits(kernel, dtype, data):
    grad, limit = data.draw(gradients(dtype)), data.draw(limits)
    before, before_bits = values_of(grad), reference.bits(grad)

    clip_value(grad, limit, kernel)

    after, after_bits = values_of(grad), reference.bits(grad)
    used = reference.largest_at_most(limit, dtype)
    expected = reference.clipped(before, used)
    for old, new, want, old_bits, new_bits in zip(
        before, after, expected, before_bits, after_bits, strict=True
    ):
        if math.isnan(old):
            assert math.isnan(new)
        else:
            assert abs(new) <= limit
            assert (new, math.copysign(1, new)) == (want, math.copysign(1, want))
            assert abs(old) > used or old_bits == new_bits


@every_kernel
@every_dtype
@thorough
@given(data=st.data())
def test_clipping_is_odd_and_clipping_twice_changes_nothing(kernel, dtype, data):
    grad, limit = data.draw(gradients(dtype)), data.draw(limits)
    mirrored = -grad

    clip_value(grad, limit, kernel)
    clip_value(mirrored, limit, kernel)

    numbers = ~grad.isnan()
    assert reference.bits(mirrored[numbers]) == reference.bits(-grad[numbers])
    once = reference.bits(grad)
    assert sum(clip_value(grad, limit, kernel)["clipped_count"]) == 0
    assert reference.bits(grad) == once


@every_kernel
@every_dtype
@thorough
@given(data=st.data())
def test_statistics_agree_with_exact_sums(kernel, dtype, data):
    grad, limit = data.draw(gradients(dtype)), data.draw(limits)
    before = values_of(grad)

    stats = clip_value(grad, limit, kernel)

    want = reference.measured(before, values_of(grad))
    got = {name: values[0] for name, values in stats.items() if isinstance(values, list)}
    for count in ("nonfinite_count", "nan_count", "zero_count", "clipped_count"):
        assert got[count] == getattr(want, count), count
    assert got["max_abs"] == want.max_abs
    assert got["norm"] == pytest.approx(want.norm, rel=1e-6)
    assert got["norm_after"] == pytest.approx(want.norm_after, rel=1e-6)
    assert got["cosine_after"] == pytest.approx(want.cosine_after, abs=1e-6)
    # A sum that cancels is as exact as its largest terms allow.
    assert got["mean"] == pytest.approx(want.mean, rel=1e-6, abs=1e-6 * want.max_abs)
    assert math.isfinite(stats["global_norm"])


@every_kernel
@every_dtype
@thorough
@given(data=st.data())
def test_with_nonfinite_zero_they_become_zero_and_are_still_counted(kernel, dtype, data):
    grad = data.draw(gradients(dtype))
    before = values_of(grad)

    stats = clip_value(grad, 1.0, kernel, nonfinite="zero")

    bad = [i for i, value in enumerate(before) if not math.isfinite(value)]
    after = values_of(grad)
    assert [after[i] for i in bad] == [0.0] * len(bad)
    assert stats["nonfinite_count"] == [len(bad)]
    finite = [value for value in before if math.isfinite(value)]
    assert stats["clipped_count"] == [sum(abs(v) > 1.0 for v in finite)]
    assert stats["norm"][0] == pytest.approx(math.hypot(*finite), rel=1e-6)


@every_kernel
@pytest.mark.parametrize("nonfinite", ["keep", "zero", "skip"])
def test_what_happens_to_nan_and_infinity_is_the_users_choice(kernel, nonfinite):
    grad = torch.tensor([math.nan, math.inf, -math.inf, 3.0, 0.5])

    stats = clip_value(grad, 1.0, kernel, nonfinite)

    wanted = {
        "keep": [math.nan, 1.0, -1.0, 1.0, 0.5],
        "zero": [0.0, 0.0, 0.0, 1.0, 0.5],
        "skip": [0.0, 0.0, 0.0, 0.0, 0.0],
    }[nonfinite]
    assert grad.tolist() == pytest.approx(wanted, nan_ok=True)
    assert (stats["nonfinite_count"], stats["nan_count"]) == ([3], [1])
    assert stats["skipped"] is (nonfinite == "skip")


@every_kernel
def test_a_step_of_finite_gradients_is_not_skipped(kernel):
    grad = torch.tensor([3.0, 0.5])

    stats = clip_value(grad, 1.0, kernel, "skip")

    assert grad.tolist() == [1.0, 0.5]
    assert stats["skipped"] is False


def test_torchs_own_clipping_breaks_the_bound_that_ours_holds():
    # The reason for rounding the limit toward zero: 0.1 has no bfloat16, the nearest one is larger.
    theirs, ours = (
        torch.full((4,), 7.0, dtype=torch.bfloat16),
        torch.full((4,), 7.0, dtype=torch.bfloat16),
    )
    parameter = torch.nn.Parameter(torch.zeros_like(theirs))
    parameter.grad = theirs
    torch.nn.utils.clip_grad_value_(parameter, 0.1)
    clip_value(ours, 0.1, "reference")

    assert theirs.double().max() > 0.1
    assert ours.double().max() <= 0.1
