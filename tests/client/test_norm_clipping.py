"""Policies that scale: by the joint norm, per tensor, per unit, and several in a chain."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests import reference
from tests.client.gradient_cases import DTYPES, KERNELS, gradients, limits, values_of

import gradwatch
from gradwatch import clip

torch.set_num_threads(1)

every_kernel = pytest.mark.parametrize("kernel", KERNELS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
thorough = settings(max_examples=40, deadline=None, derandomize=True)  # a gate says the same twice


def clip_all(grads, policy, kernel="reference", weights=None, **options):
    clipper = gradwatch.Clipper(policy, kernel=kernel, **options)
    return clipper.clip_(grads, weights).to_dict()


def finite_values(grads):
    return [v for grad in grads for v in values_of(grad) if math.isfinite(v)]


@every_kernel
@every_dtype
@thorough
@given(data=st.data())
def test_all_gradients_are_scaled_by_one_factor_from_the_norm_of_the_finite_elements(
    kernel, dtype, data
):
    grads, limit = [data.draw(gradients(dtype)) for _ in range(2)], data.draw(limits)
    before = [values_of(grad) for grad in grads]
    norm = math.hypot(*finite_values(grads))
    assume(
        math.isfinite(norm)
    )  # beyond the range of float64 there is no exact norm to compare with

    stats = clip_all(grads, clip.norm(limit), kernel)

    factor = min(1.0, limit / norm) if norm else 1.0
    # Smaller factors have few digits left in float32; they are rounded down, the limit holds.
    assume(factor > 1e-35)
    rounding = 4 * torch.finfo(dtype).eps
    smallest = torch.finfo(dtype).smallest_normal
    for grad, old in zip(grads, before, strict=True):
        for new, value in zip(values_of(grad), old, strict=True):
            if math.isfinite(value):
                assert new == pytest.approx(value * factor, rel=rounding + 1e-6, abs=smallest)
            else:
                assert new == value or math.isnan(value)
    assert stats["global_norm"] == pytest.approx(norm, rel=1e-6)
    after = [math.hypot(*(v for v in values_of(grad) if math.isfinite(v))) for grad in grads]
    assert stats["norm_after"] == pytest.approx(after, rel=1e-6, abs=1e-300)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@thorough
@given(data=st.data())
def test_the_joint_norm_ends_within_the_limit_and_clipping_twice_changes_nothing(
    kernel, dtype, data
):
    grads = [data.draw(gradients(dtype, finite=True)) for _ in range(2)]
    limit = data.draw(st.floats(1e-3, 1e3))
    assume(math.isfinite(math.hypot(*finite_values(grads))))

    clip_all(grads, clip.norm(limit), kernel)

    assert math.hypot(*finite_values(grads)) <= limit * (1 + 2**-21)
    once = [reference.bits(grad) for grad in grads]
    stats = clip_all(grads, clip.norm(limit), kernel)
    assert [reference.bits(grad) for grad in grads] == once
    assert sum(stats["clipped_count"]) == 0


@every_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaling_is_odd(kernel, dtype):
    grad = torch.randn(3000, generator=torch.Generator().manual_seed(5)).to(dtype)
    mirrored = -grad

    clip_all([grad], clip.norm(0.7), kernel)
    clip_all([mirrored], clip.norm(0.7), kernel)

    assert reference.bits(mirrored) == reference.bits(-grad)


@every_kernel
@pytest.mark.parametrize(
    ("grad", "norm"),
    [
        pytest.param(
            torch.full((70_000,), 300.0, dtype=torch.float16), 79372.539, id="fp16 overflow"
        ),
        pytest.param(torch.full((128,), 1e19), 1.1313709e20, id="squares beyond float32"),
        pytest.param(torch.full((4,), 1e-30), 2e-30, id="squares below float32"),
        pytest.param(
            torch.full((4,), 1e300, dtype=torch.float64), 2e300, id="squares beyond float64"
        ),
        pytest.param(torch.full((4,), 1e-300, dtype=torch.float64), 2e-300, id="below float64"),
        pytest.param(torch.full((4,), 1e-40), 2e-40, id="subnormal"),
    ],
)
def test_norms_of_extreme_gradients_are_right_and_so_is_the_scaling(kernel, grad, norm):
    grad = grad.clone()

    stats = clip_all([grad], clip.norm(norm / 4), kernel)

    assert stats["norm"] == pytest.approx([norm], rel=1e-3 if norm == 2e-40 else 1e-6)
    assert stats["global_norm_after"] == pytest.approx(norm / 4, rel=1e-3)


@every_kernel
def test_torchs_norm_turns_one_infinity_into_nan_everywhere_and_ours_does_not(kernel):
    grad = torch.tensor([math.inf, 3.0, 4.0])
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(parameter, 1.0)

    clip_all([grad], clip.norm(1.0), kernel)

    assert parameter.grad.isnan().any()
    assert grad.tolist() == pytest.approx([math.inf, 0.6, 0.8])


@every_kernel
@pytest.mark.parametrize("order", [1.0, 2.0, 3.5, math.inf])
def test_other_orders_agree_with_torch(kernel, order):
    source = torch.Generator().manual_seed(1)
    grads = [torch.randn(50, 7, generator=source), torch.randn(11, generator=source)]
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 0.5, order)

    clip_all(grads, clip.norm(0.5, order), kernel)

    for parameter, grad in zip(parameters, grads, strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-9)


@every_kernel
def test_per_tensor_limits_each_tensor_by_its_own_norm(kernel):
    grads = [torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])]

    stats = clip_all(grads, clip.per_tensor(1.0), kernel)

    assert grads[0].tolist() == pytest.approx([0.6, 0.8])
    assert grads[1].tolist() == pytest.approx([0.3, 0.4])
    assert stats["clipped_count"] == [2, 0]


@every_kernel
def test_agc_limits_every_row_to_its_weights_and_lets_zero_weights_move(kernel):
    weights = [torch.tensor([[3.0, 4.0], [0.0, 0.0], [30.0, 40.0]])]
    grads = [torch.tensor([[6.0, 8.0], [6.0, 8.0], [0.06, 0.08]])]

    stats = clip_all(grads, clip.agc(0.1, epsilon=1e-3), kernel, weights)

    rows = grads[0].norm(dim=1).tolist()
    assert rows == pytest.approx([0.5, 1e-4, 0.1])
    assert stats["clipped_count"] == [4]
    assert stats["norm_after"] == pytest.approx([grads[0].norm().item()])
    before = torch.tensor([6.0, 8.0, 6.0, 8.0, 0.06, 0.08])
    cosine = torch.nn.functional.cosine_similarity(before, grads[0].flatten(), dim=0)
    assert stats["cosine_after"] == pytest.approx([cosine.item()])


@every_kernel
def test_value_rms_follows_each_tensors_own_scale_and_is_not_lifted_by_a_spike(kernel):
    clipper = gradwatch.Clipper(clip.value_rms(4.0, decay=0.9), kernel=kernel)
    source = torch.Generator().manual_seed(0)
    for _ in range(50):
        clipper.clip_(
            [torch.randn(1000, generator=source), torch.randn(1000, generator=source) * 1e-4]
        )
    steady = clipper.clip_([torch.randn(1000, generator=source), torch.full((1000,), math.nan)])

    spike = torch.randn(1000, generator=source) * 1e4
    during = clipper.clip_([spike, torch.zeros(1000)])
    after = clipper.clip_([torch.zeros(1000), torch.zeros(1000)])

    assert steady.threshold.tolist() == pytest.approx([4.0, 4e-4], rel=0.2)
    assert during.threshold.tolist() == pytest.approx(steady.threshold.tolist(), rel=0.2)
    assert spike.abs().max() <= during.threshold[0]
    # One step of 1e4 times the level lifts the limit by no more than the clipped step can.
    assert after.threshold[0] <= during.threshold[0] * math.sqrt(0.9 + 0.1 * 16) * 1.01


@every_kernel
@every_dtype
def test_a_chain_holds_both_limits_with_infinities_counted_into_the_norm(kernel, dtype):
    grad = torch.tensor([math.inf, -math.inf, 5.0, 0.1, math.nan]).to(dtype)

    stats = clip_all([grad], clip.chain(clip.value(1.0), clip.norm(1.0)), kernel)

    kept = grad[~grad.isnan()].double()
    assert kept.norm() <= 1 + torch.finfo(dtype).eps
    # The two infinities are in what the optimizer gets, and not in the statistics of finite elements.
    assert stats["norm_after"] == pytest.approx([kept[2:].norm().item()], rel=1e-6)


@every_kernel
@pytest.mark.parametrize(
    "policy",
    [
        clip.chain(clip.value(4e6), clip.norm(2e6)),
        clip.chain(clip.value(4e6), clip.value(2e6), clip.norm(1e6)),
    ],
    ids=["scaled", "limited twice"],
)
def test_a_held_infinity_far_above_the_others_takes_no_digits_from_their_norm(kernel, policy):
    grad = torch.tensor([0.5, math.inf, -0.25])

    stats = clip_all([grad], policy, kernel)

    assert stats["norm_after"] == pytest.approx([math.hypot(grad[0], grad[2])], rel=1e-6)
    assert stats["cosine_after"] == pytest.approx([1.0])


@every_kernel
@thorough
@given(data=st.data())
def test_chains_in_any_order_measure_what_came_out(kernel, data):
    first = data.draw(st.sampled_from([clip.value(0.5), clip.norm(2.0), clip.per_tensor(1.0)]))
    second = data.draw(st.sampled_from([clip.value(0.3), clip.value(2.0), clip.norm(1.0)]))
    grads = [data.draw(gradients(torch.float32)) for _ in range(2)]
    before = [values_of(grad) for grad in grads]

    stats = clip_all(grads, clip.chain(first, second), kernel)

    wanted = [reference.measured(b, values_of(g)) for b, g in zip(before, grads, strict=True)]
    assert stats["norm"] == pytest.approx([w.norm for w in wanted], rel=1e-6)
    assert stats["norm_after"] == pytest.approx([w.norm_after for w in wanted], rel=1e-4, abs=1e-30)
    for got, want in zip(stats["cosine_after"], wanted, strict=True):
        assert got <= want.cosine_after + 1e-4
    if isinstance(second, type(clip.value(1.0))):
        assert all(abs(v) <= second.limit for g in grads for v in values_of(g) if not math.isnan(v))


def test_patterns_give_tensors_their_own_policies_and_the_norm_counts_its_own_tensors_only():
    grads = [torch.full((4,), 5.0), torch.full((4,), 5.0), torch.full((4,), 5.0)]
    policy = {"embed*": clip.value(1.0), "head": None, "*": clip.norm(2.0)}

    stats = gradwatch.Clipper(policy, ["embed.weight", "head", "body"]).clip_(grads)

    assert [g[0].item() for g in grads] == pytest.approx([1.0, 5.0, 1.0])
    assert stats.threshold.tolist() == pytest.approx([1.0, math.nan, 2.0], nan_ok=True)
    assert stats.columns[-1] == "threshold"


def test_a_schedule_changes_the_limit_at_its_steps():
    clipper = gradwatch.Clipper(clip.schedule({0: 5.0, 2: 1.0, 3: clip.norm(0.5)}))
    seen = []
    for _ in range(4):
        grad = torch.tensor([9.0])
        stats = clipper.clip_([grad])
        seen += [grad.item(), stats.threshold.item()]

    assert seen == pytest.approx([5.0, 5.0, 5.0, 5.0, 1.0, 1.0, 0.5, 0.5])


def test_sharded_norms_are_joined_by_the_callers_reduction():
    # Two ranks hold half of one tensor each; the reduction stands for an all-reduce.
    whole = torch.arange(1.0, 9.0)
    halves = [whole[:4].clone(), whole[4:].clone()]
    total = {"sum": whole.double().square().sum().reshape(1)}

    for half in halves:
        gradwatch.Clipper(clip.norm(1.0), reduce=lambda sums, op: total[op].to(sums)).clip_([half])

    torch.testing.assert_close(torch.cat(halves), whole / whole.norm())
