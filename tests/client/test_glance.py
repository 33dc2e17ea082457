"""The kernel of CPUs without a compiler against the reference: a look first must change nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import reference
from tests.client.gradient_cases import DTYPES
from tests.client.gradient_cases import gradients as drawn
from tests.client.gradient_cases import limits as drawn_limits
from tests.client.no_host_sync import no_host_sync

import gradwatch
from gradwatch import clip, kernels
from gradwatch.errors import KernelError
from gradwatch.kernels import Glance, Gradients, Reference, Row, new_rows


def assert_agree(make, limit, *, zero=False):
    """Compare bits and statistics of both kernels on gradients that ``make`` returns anew."""
    limits = None if limit is None else torch.full((len(make()),), limit, dtype=torch.float64)
    rows, changed = [], []
    for kernel in (Glance(), Reference()):
        grads = Gradients.of(make())
        rows.append(new_rows(len(grads), torch.device("cpu")))
        kernel.measure_(grads, limits, rows[-1], zero_nonfinite=zero)
        changed.append([g for g in grads.tensors if g is not None])
    for ours, theirs in zip(*changed, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert reference.bits(ours.nan_to_num(0.0)) == reference.bits(theirs.nan_to_num(0.0))
    got, want = rows
    for row in rows:  # elements cancel in a mean: its error is one of the elements'
        row[Row.MEAN] += row[Row.MAX_ABS]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=60, deadline=None, derandomize=True)  # a gate says the same twice
@given(data=st.data())
def test_a_look_first_gives_the_same_bits_and_statistics(dtype, data):
    grad, limit = data.draw(drawn(dtype)), data.draw(st.none() | drawn_limits)
    assert_agree(lambda: [grad.clone()], limit, zero=data.draw(st.booleans()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("limit", [None, math.inf, 1.0, 1e-3], ids=repr)
def test_one_odd_tensor_among_many_does_not_touch_the_others(dtype, limit):
    def make():
        source = torch.Generator().manual_seed(0)
        many = [torch.randn(40, 50, generator=source).to(dtype) for _ in range(150)]
        large = [torch.randn(200, 1500, generator=source).to(dtype) for _ in range(2)]
        many[70][3, 3], large[1][-1, -1] = math.nan, -math.inf
        many[71].zero_()
        return [
            *many,
            *large,
            None,
            torch.zeros(0, dtype=dtype),
            torch.full((200, 1500), 0.3).to(dtype)[:, ::2],
        ]

    assert_agree(make, limit)


def test_without_a_compiled_kernel_clipping_goes_by_the_look_and_says_why(monkeypatch):
    monkeypatch.setattr(kernels, "load_cpu", lambda: KernelError("no compiler"))
    clipper = gradwatch.Clipper(clip.value(1.0))

    stats = clipper.clip_([torch.tensor([3.0, -0.5])])

    assert stats.clipped_count.tolist() == [1.0]
    assert isinstance(clipper._used[torch.device("cpu")], Glance)
    assert (clipper.kernel, clipper.kernel_fallback) == ("reference", "no compiler")


def test_the_reference_takes_as_many_operations_for_many_small_tensors_as_for_few():
    def operations(count):
        clipper = gradwatch.Clipper(clip.chain(clip.value(1.0), clip.norm(1.0)), kernel="reference")
        grads = [torch.zeros(3, 4, device="meta") for _ in range(count)]
        clipper.clip_(grads)
        with no_host_sync() as seen:
            clipper.clip_(grads)
        # Views are made on the host: they start no work on the device.
        views = ("detach", "view", "unbind", "alias", "_unsafe_view")
        return {name: n for name, n in seen.counts.items() if name not in views}

    assert operations(10) == operations(100)
