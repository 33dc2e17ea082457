"""Histograms, cosines and norms of weights: exact where they look, honest about where they do not."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.client.gradient_cases import DTYPES, KERNELS, gradients, values_of

import gradwatch
from gradwatch import clip
from gradwatch.errors import PolicyError

torch.set_num_threads(1)

every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bin_of(value):
    """Return the bin by its definition: 2^(-48 + b/4) <= |g| < 2^(-48 + (b+1)/4)."""
    size = abs(value)
    if size >= 2.0**16:
        return 255
    guess = math.floor(4 * (math.log2(size) + 48))
    inside = [
        b
        for b in (guess - 1, guess, guess + 1)
        if 2 ** (b / 4 - 48) <= size < 2 ** ((b + 1) / 4 - 48)
    ]
    return min(max(inside[0] if inside else guess, 0), 255)


@every_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_an_exact_histogram_counts_every_finite_element_that_is_not_zero(kernel, dtype, data):
    grad = data.draw(gradients(dtype))
    assume(grad.numel())  # nothing looked at is no histogram
    expected = [0] * 256
    for value in values_of(grad):
        if math.isfinite(value) and value:
            expected[bin_of(value)] += 1

    clipper = gradwatch.Clipper(
        clip.value(1e-3), kernel=kernel, histogram_every=1, histogram_exact=True
    )
    stats = clipper.clip_([grad])

    assert stats.histogram.tolist() == [expected]
    assert stats.histogram_sampled == 1.0


@every_kernel
def test_eight_sampled_histograms_together_are_the_exact_one(kernel):
    grads = [noise(n, seed=n) for n in (1, 7, 300, 4095, 32_767, 32_768, 32_769, 100_003)]
    exact = gradwatch.Clipper(None, kernel=kernel, histogram_every=1, histogram_exact=True).clip_(
        grads
    )

    clipper = gradwatch.Clipper(None, kernel=kernel, histogram_every=2)
    steps = [clipper.clip_(grads) for _ in range(16)]

    taken = [stats for stats in steps if stats.histogram is not None]
    assert len(taken) == 8
    assert torch.equal(sum(stats.histogram for stats in taken), exact.histogram)
    assert sum(stats.histogram_sampled for stats in taken) == pytest.approx(1.0)
    for stats in taken:
        elements = sum(g.numel() for g in grads)
        assert stats.histogram.sum().item() == round(stats.histogram_sampled * elements)


@every_kernel
@pytest.mark.parametrize("sizes", [[4, 1], [0], [], [0, 3]], ids=str)
def test_a_small_model_is_counted_whole_and_an_empty_one_not_at_all(kernel, sizes):
    clipper = gradwatch.Clipper(None, kernel=kernel, histogram_every=1)

    for _ in range(9):
        stats = clipper.clip_([torch.ones(n) for n in sizes])
        if sum(sizes):
            assert stats.histogram_sampled == 1.0
            assert stats.histogram.sum().item() == sum(sizes)
        else:
            assert stats.histogram is None


@every_kernel
def test_cosines_with_the_step_before_are_exact_for_small_tensors_and_close_for_large_ones(kernel):
    first, second = (
        [noise(1024), noise(500_000, seed=1)],
        [noise(1024, seed=2), noise(500_000, seed=3)],
    )
    second = [b + 0.5 * a for a, b in zip(first, second, strict=True)]
    expected = [
        torch.nn.functional.cosine_similarity(a, b, dim=0)
        for a, b in zip(first, second, strict=True)
    ]

    clipper = gradwatch.Clipper(clip.norm(1.0), kernel=kernel, optional=["cosine_previous"])
    start = clipper.clip_(first)
    # Clipping in between changed lengths, not directions; what is compared is before clipping.
    stats = clipper.clip_(second)

    assert start["cosine_previous"].isnan().all()
    assert stats["cosine_previous"].tolist() == pytest.approx(
        [e.item() for e in expected], abs=0.02
    )
    assert stats["cosine_previous"][0].item() == pytest.approx(expected[0].item(), abs=1e-5)
    whole = torch.nn.functional.cosine_similarity(torch.cat(first), torch.cat(second), dim=0)
    place = stats.scalar_names.index("cosine_previous")
    assert stats.scalars[place].item() == pytest.approx(whole.item(), abs=0.05)


@every_kernel
def test_cosines_every_few_steps_compare_with_the_step_just_before(kernel):
    clipper = gradwatch.Clipper(None, kernel=kernel, optional=["cosine_previous"], optional_every=3)
    grads = [noise(50, seed=step) for step in range(7)]

    rows = [clipper.clip_([grad])["cosine_previous"].item() for grad in grads]

    measured = {step: row for step, row in enumerate(rows) if not math.isnan(row)}
    expected = {
        step: torch.nn.functional.cosine_similarity(grads[step - 1], grads[step], dim=0).item()
        for step in (3, 6)
    }
    assert measured == pytest.approx(expected)


@every_kernel
def test_a_tensor_that_was_absent_or_zero_has_no_cosine_and_nan_elements_do_not_count(kernel):
    clipper = gradwatch.Clipper(None, kernel=kernel, optional=["cosine_previous"])
    clipper.clip_([torch.tensor([1.0, 2.0, math.nan]), torch.zeros(3)])

    stats = clipper.clip_([torch.tensor([2.0, 4.0, 5.0]), torch.ones(3)])

    cosines = stats["cosine_previous"].tolist()
    assert cosines[0] == pytest.approx(math.sqrt(20 / 45))
    assert math.isnan(cosines[1])
    clipper.clip_([torch.ones(3), None])
    assert clipper.clip_([torch.ones(3), torch.ones(3)])["cosine_previous"].isnan().all()


@every_kernel
def test_momentum_weights_and_updates_are_measured_from_what_the_optimizer_has(kernel):
    weight = torch.nn.Parameter(noise(300))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    names = ["cosine_momentum", "weight_norm", "update_norm"]
    clipper = gradwatch.Clipper(None, kernel=kernel, optional=names)
    moved = 0.0
    for step in range(3):
        before = weight.detach().clone()
        weight.grad = noise(300, seed=step + 5)
        momentum = optimizer.state[weight].get("momentum_buffer")
        cosine = momentum is not None and torch.nn.functional.cosine_similarity(
            momentum, weight.grad, dim=0
        )
        stats = clipper.clip_(
            [weight.grad], [weight], momenta=None if momentum is None else [momentum]
        )
        if step:
            assert stats["cosine_momentum"].item() == pytest.approx(cosine.item(), abs=1e-6)
            assert stats["update_norm"].item() == pytest.approx(moved, rel=1e-5)
        assert stats["weight_norm"].item() == pytest.approx(before.norm().item())
        optimizer.step()
        moved = (weight.detach() - before).norm().item()


@every_kernel
def test_sampled_norms_of_a_large_tensor_are_close(kernel):
    weight = noise(600_000)
    clipper = gradwatch.Clipper(None, kernel=kernel, optional=["weight_norm"])

    stats = clipper.clip_([weight], [weight])

    assert stats["weight_norm"].item() == pytest.approx(weight.norm().item(), rel=0.05)


@every_kernel
def test_measuring_more_changes_no_gradient(kernel):
    plain, watched = [noise(5000)], [noise(5000)]
    everything = gradwatch.clipping.extras.OPTIONAL

    gradwatch.Clipper(clip.value(0.5), kernel=kernel).clip_(plain)
    gradwatch.Clipper(clip.value(0.5), kernel=kernel, optional=everything, histogram_every=1).clip_(
        watched, [noise(5000, seed=1)], momenta=[noise(5000, seed=2)]
    )

    assert torch.equal(plain[0], watched[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optional": ["cosine"]}, "cosine_previous, cosine_momentum"),
        ({"optional_every": 0}, "from 1"),
        ({"histogram_every": -1}, "from 0"),
        ({"histogram_every": 1.5}, "whole number"),
    ],
)
def test_options_out_of_range_say_what_is_allowed(options, says):
    with pytest.raises(PolicyError, match=says):
        gradwatch.Clipper(None, **options)
