"""The GPU kernel against the reference: in Triton's interpreter on a CPU, on a GPU where there is one.

    TRITON_INTERPRET=1 pytest -m triton tests/client/test_cuda_kernel.py

Deselected where triton is not installed (tests/client/conftest.py).
"""

import math
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import reference
from tests.client.gradient_cases import DTYPES, limits
from tests.client.gradient_cases import gradients as drawn

import gradwatch
from gradwatch import clip, kernels
from gradwatch.errors import KernelError
from gradwatch.kernels import Gradients, Histogram, Reference, Row, library, new_rows
from gradwatch.kernels.sampling import BINS

triton = pytest.mark.triton
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_kernel():
    from gradwatch.kernels.cuda import Cuda  # noqa: PLC0415 -- imports triton

    return Cuda()


def gradients(dtype):
    """Return gradients of every size around a block's, with odd numbers, gaps and nothing at all."""
    source = torch.Generator().manual_seed(0)
    sizes = [1, 3, 4095, 4096, 4097, 9001, 0]
    grads = [torch.randn(n, generator=source, dtype=torch.float64) for n in sizes]
    grads = [(g * 10.0 ** (i % 4 - 2)).to(dtype) for i, g in enumerate(grads)]
    grads[3][7] = math.nan
    grads[5][:3] = torch.tensor([-math.inf, 0.0, math.inf])
    gaps = torch.randn(60, 50, generator=source).to(dtype)[:, ::2]
    turned = torch.randn(40, 30, generator=source).to(dtype).t()
    return [*grads, None, gaps, turned, torch.zeros(5000, dtype=dtype)]


def both(make, work):
    """Return what each kernel made of the same gradients: its rows and the gradients."""
    results = []
    for kernel in (new_kernel(), Reference()):
        grads = Gradients.of([None if g is None else g.to(DEVICE) for g in make()])
        rows = new_rows(len(grads), DEVICE)
        work(kernel, grads, rows)
        results.append((rows.cpu(), [None if g is None else g.cpu() for g in grads]))
    return results


def assert_agree(results):
    (got, ours), (want, theirs) = results
    for a, b in zip(ours, theirs, strict=True):
        if a is not None:
            assert torch.equal(a.isnan(), b.isnan())
            assert reference.bits(a.nan_to_num(0.0)) == reference.bits(b.nan_to_num(0.0))
    for rows in (got, want):  # elements cancel in a mean: its error is one of the elements'
        rows[Row.MEAN] += rows[Row.MAX_ABS]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-300)


@triton
@every_dtype
@pytest.mark.parametrize("zero", [False, True], ids=["keep", "zero"])
@pytest.mark.parametrize("limit", [0.1, math.inf, None, 1e-9], ids=repr)
def test_it_measures_and_limits_as_the_reference_does(dtype, zero, limit):
    def work(kernel, grads, rows):
        held = None if limit is None else torch.full_like(rows[0], limit)
        kernel.measure_(grads, held, rows, zero_nonfinite=zero)

    assert_agree(both(lambda: gradients(dtype), work))


@triton
@every_dtype
def test_it_scales_and_empties_as_the_reference_does(dtype):
    def work(kernel, grads, rows):
        coefficients = torch.linspace(1e-3, 1.1, len(grads), dtype=torch.float64, device=DEVICE)
        rows.fill_(7.0)
        kernel.scale_(grads, coefficients, rows)
        kernel.zero_(grads, torch.zeros_like(rows[0, 0]))

    assert_agree(both(lambda: gradients(dtype), work))


@triton
@every_dtype
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,  # a gate says the same twice
    suppress_health_check=[HealthCheck.too_slow],  # an interpreter is slow
)
@given(data=st.data())
def test_it_agrees_on_awkward_numbers(dtype, data):
    grads = [data.draw(drawn(dtype)) for _ in range(2)]
    limit, factor = data.draw(limits), data.draw(st.floats(1e-6, 1.0))
    zero = data.draw(st.booleans())

    def work(kernel, given, rows):
        kernel.measure_(given, torch.full_like(rows[0], limit), rows, zero_nonfinite=zero)
        kernel.scale_(given, torch.full_like(rows[0], factor), rows)

    assert_agree(both(lambda: [g.clone() for g in grads], work))


@triton
@pytest.mark.parametrize(
    ("grad", "norm"),
    [
        (torch.full((70_000,), 300.0, dtype=torch.float16), 79372.539),
        (torch.full((128,), 1e19), 1.1313709e20),
        (torch.full((4,), 1e-30), 2e-30),
        (torch.full((4,), 1e300, dtype=torch.float64), 2e300),
        (torch.full((4,), 1e-300, dtype=torch.float64), 2e-300),
    ],
    ids=["fp16 overflow", "large", "small", "beyond float64", "below float64"],
)
def test_norms_beyond_the_range_of_squares_are_right(grad, norm):
    rows = new_rows(1, DEVICE)

    new_kernel().measure_(Gradients.of([grad.to(DEVICE)]), None, rows)

    assert rows[Row.NORM, 0].item() == pytest.approx(norm, rel=1e-6)


@triton
def test_histograms_are_counted_before_anything_changes():
    counts = []

    def work(kernel, grads, rows):
        counts.append(torch.zeros(len(grads), BINS, dtype=torch.int64, device=DEVICE))
        histogram = Histogram(counts[-1], every=2, phase=1)
        kernel.measure_(grads, torch.full_like(rows[0], 0.01), rows, histogram=histogram)

    assert_agree(both(lambda: gradients(torch.float32), work))
    assert torch.equal(*counts)


@triton
@pytest.mark.parametrize(
    "policy",
    [
        clip.value(0.5),
        clip.norm(1.0),
        clip.per_tensor(1.0),
        clip.chain(clip.value(1.0), clip.norm(5.0), clip.value(0.1)),
    ],
    ids=lambda policy: policy.kind,
)
def test_policies_come_out_as_with_the_reference(policy, monkeypatch):
    results = []
    for kernel in (new_kernel(), Reference()):
        monkeypatch.setattr("gradwatch.clipping.clipper.choose", lambda *_, k=kernel: (k, None))
        clipper = gradwatch.Clipper(policy, nonfinite="keep")
        for _ in range(2):  # the second time with what the first remembered
            source = torch.Generator().manual_seed(1)
            grads = [torch.randn(n, generator=source).to(DEVICE) for n in (5, 4097, 300)]
            grads[1][3] = math.inf
            half = torch.randn(500, generator=source).to(DEVICE, torch.bfloat16)
            stats = clipper.clip_([*grads, None, half])
        results.append(([g.cpu() for g in grads], half.cpu(), stats.packed.cpu()))
    ours, theirs = results
    # Norms that differ in the seventh digit make factors that do.
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[1], theirs[1], rtol=2**-7, atol=0)
    cosine = gradwatch.statistics.STATISTICS.index("cosine_after")
    rest = [row for row in range(len(ours[2])) if row != cosine]
    torch.testing.assert_close(ours[2][rest], theirs[2][rest], rtol=1e-6, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(ours[2][cosine], theirs[2][cosine], rtol=0, atol=1e-4)


@triton
@pytest.mark.gpu
def test_on_a_gpu_no_step_waits_for_the_device():
    clipper = gradwatch.Clipper(clip.chain(clip.value(1.0), clip.norm(1.0)), kernel="cuda")
    grads = [torch.randn(n, device="cuda") for n in (10, 100_000)]
    clipper.clip_(grads)  # compiles, tests itself, and makes thresholds out of numbers

    torch.cuda.set_sync_debug_mode("error")
    try:
        clipper.clip_(grads)
        stats = clipper.clip_([torch.randn(n, device="cuda") for n in (10, 100_000)])
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert clipper.kernel == "cuda"
    assert stats.global_norm_after.item() <= 1 + 1e-6


@pytest.fixture
def no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("gradwatch.kernels.cuda", "gradwatch.kernels.programs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(kernels, "cuda", raising=False)
    library.load_cuda.cache_clear()
    yield
    library.load_cuda.cache_clear()


def test_without_triton_gpus_get_the_reference_and_are_told_how_to_change_that(no_triton, caplog):
    kernel, reason = kernels.choose("auto", torch.device("cuda"))

    assert kernel.name == "reference"
    assert "pip install triton" in reason
    assert "pip install triton" in caplog.text
    with pytest.raises(KernelError, match="pip install triton"):
        kernels.choose("cuda", torch.device("cuda"))


def test_a_gpu_kernel_is_not_for_gradients_elsewhere():
    with pytest.raises(KernelError, match="cannot clip gradients on cpu"):
        gradwatch.Clipper(None, kernel="cuda").clip_([torch.ones(3)])
