"""The compiled kernel against the reference: the same bits in every gradient, whatever the threads."""

import ctypes
import math

import pytest
import torch
from tests import reference
from tests.client.gradient_cases import DTYPES, KERNELS

import gradwatch
from gradwatch import clip
from gradwatch.errors import KernelError
from gradwatch.kernels import Gradients, Histogram, Reference, Row, library, new_rows
from gradwatch.kernels.sampling import BINS

needs_cpu_kernel = pytest.mark.skipif(
    "cpu" not in KERNELS, reason="no compiled kernel: there was no C compiler at installation"
)


def gradients(dtype, seed=0):
    source = torch.Generator().manual_seed(seed)
    sizes = [1, 3, 4095, 4096, 4097, 131_072, 131_075, 700_001, 0]
    grads = [torch.randn(n, generator=source, dtype=torch.float64) for n in sizes]
    grads = [(g * 10.0 ** (i % 4 - 2)).to(dtype) for i, g in enumerate(grads)]
    grads[5][7] = math.nan
    grads[7][699_999] = -math.inf
    return [*grads, None, torch.randn(60, 50, generator=source).to(dtype)[:, ::2]]


def assert_same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        if a is not None:
            assert torch.equal(a.isnan(), b.isnan())
            assert reference.bits(a.nan_to_num(0.0)) == reference.bits(b.nan_to_num(0.0))


def assert_same_statistics(got, want):
    """Compare rows; a mean, whose sum cancels, to the size of what was added."""
    largest = want[Row.MAX_ABS].max()
    torch.testing.assert_close(got[Row.MEAN], want[Row.MEAN], rtol=1e-6, atol=1e-6 * largest.item())
    rest = [row for row in Row if row != Row.MEAN]
    torch.testing.assert_close(got[rest], want[rest], rtol=1e-6, atol=1e-12, equal_nan=True)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zero", [False, True], ids=["keep", "zero"])
@pytest.mark.parametrize("limit", [0.1, 3.0, math.inf, None], ids=repr)
def test_the_compiled_kernel_measures_and_limits_as_the_reference_does(dtype, zero, limit):
    ours, theirs = Gradients.of(gradients(dtype)), Gradients.of(gradients(dtype))
    limits = None if limit is None else torch.full((len(ours),), limit, dtype=torch.float64)
    got, want = (new_rows(len(ours), torch.device("cpu")) for _ in range(2))

    library.load(library.PATH).measure_(ours, limits, got, zero_nonfinite=zero)
    Reference().measure_(theirs, limits, want, zero_nonfinite=zero)

    assert_same_bits(ours, theirs)
    assert_same_statistics(got, want)


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_compiled_kernel_scales_and_empties_as_the_reference_does(dtype):
    ours, theirs = Gradients.of(gradients(dtype)), Gradients.of(gradients(dtype))
    coefficients = torch.linspace(1e-3, 1.1, len(ours), dtype=torch.float64)
    got, want = (torch.full((len(Row), len(ours)), 7.0, dtype=torch.float64) for _ in range(2))
    kernel = library.load(library.PATH)

    kernel.scale_(ours, coefficients, got)
    Reference().scale_(theirs, coefficients, want)

    assert_same_bits(ours, theirs)
    assert_same_statistics(got, want)
    kernel.zero_(ours, torch.zeros((), dtype=torch.float64))
    assert_same_bits(ours, theirs)
    kernel.zero_(ours, torch.ones((), dtype=torch.float64))
    assert all(g is None or not g.any() for g in ours)


def borders(dtype):
    """Return the numbers around every border between two bins, both signs, and what has no bin."""
    exact = torch.arange(-60 * 4, 40 * 4, dtype=torch.float64).div(4).exp2()
    near = exact.to(dtype)
    both = [torch.nextafter(near, torch.full_like(near, end)) for end in (0.0, math.inf)]
    odd = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf], dtype=dtype)
    return torch.cat([near, *both, -near, odd])


@needs_cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("every", "phase"), [(1, 0), (3, 2), (8, 7)])
def test_magnitudes_are_counted_as_the_reference_counts_them_and_before_they_are_clipped(
    dtype, every, phase
):
    counts, make = [], lambda: [borders(dtype), *gradients(dtype)[:5], *gradients(dtype)[-2:]]
    for kernel in (library.load(library.PATH), Reference()):
        grads = Gradients.of(make())
        counts.append(torch.zeros(len(grads), BINS, dtype=torch.int64))
        limits = torch.full((len(grads),), 0.01, dtype=torch.float64)
        histogram = Histogram(counts[-1], every, phase)
        kernel.measure_(
            grads, limits, new_rows(len(grads), torch.device("cpu")), histogram=histogram
        )

    assert torch.equal(*counts)
    assert counts[0][0].sum() > 300 / every


@needs_cpu_kernel
def test_results_do_not_depend_on_the_number_of_threads():
    def run(threads):
        torch.set_num_threads(threads)
        grads = [torch.randn(3_000_001, generator=torch.Generator().manual_seed(1)), torch.ones(5)]
        policy = clip.chain(clip.value(2.0), clip.norm(1.0))
        stats = gradwatch.Clipper(policy, kernel="cpu", histogram_every=1).clip_(grads)
        return reference.bits(stats.buffer), reference.bits(grads[0]), stats.histogram.tolist()

    try:
        assert run(1) == run(2)
    finally:
        torch.set_num_threads(1)


@needs_cpu_kernel
def test_clipping_allocates_nothing_the_size_of_a_gradient():
    grad = torch.ones(4_000_000)
    clipper = gradwatch.Clipper(clip.value(0.5), kernel="cpu")
    clipper.clip_([grad])

    with torch.profiler.profile(profile_memory=True) as profile:
        clipper.clip_([grad])

    assert max(event.self_cpu_memory_usage for event in profile.key_averages()) < 10_000


def test_a_missing_library_is_a_reason_not_a_crash(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(library, "PATH", tmp_path / "none.so")
    library.load_cpu.cache_clear()
    try:
        clipper = gradwatch.Clipper(clip.value(1.0))
        clipper.clip_([torch.ones(3)])

        assert clipper.kernel == "reference"
        assert "no C compiler" in clipper.kernel_fallback
        assert len([r for r in caplog.records if r.name == "gradwatch"]) == 1
        with pytest.raises(KernelError, match="no C compiler"):
            gradwatch.Clipper(None, kernel="cpu").clip_([torch.ones(3)])
    finally:
        library.load_cpu.cache_clear()


def test_a_file_that_is_no_library_is_refused(tmp_path):
    rubbish = tmp_path / "rubbish.so"
    rubbish.write_bytes(b"no library")

    with pytest.raises(KernelError, match="cannot be loaded"):
        library.load(rubbish)


@needs_cpu_kernel
def test_a_kernel_that_computes_something_else_fails_its_self_test():
    kernel = library.load(library.PATH)
    real = kernel.measure_

    def off_by_a_little(grads, limits, rows, **options):
        real(grads, limits, rows, **options)
        rows[1] *= 1 + 1e-5

    kernel.measure_ = off_by_a_little

    with pytest.raises(KernelError, match=r"self-test .*NORM"):
        library.self_test(kernel, kernel.dtypes, torch.device("cpu"))


@needs_cpu_kernel
def test_a_library_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(library, "VERSION", ctypes.CDLL(str(library.PATH)).gw_version() + 1)

    with pytest.raises(KernelError, match="reinstall"):
        library.load(library.PATH)


@needs_cpu_kernel
def test_a_kernel_asked_for_where_it_cannot_work_is_an_error():
    with pytest.raises(KernelError, match="cannot clip gradients on meta"):
        gradwatch.Clipper(None, kernel="cpu").clip_([torch.ones(3, device="meta")])
