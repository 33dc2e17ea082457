"""Devices that this machine has not, such as Apple's and Intel's GPUs: what can be known without one.

They get the reference kernel. Meta tensors stand for them: no value, but every operation's dtype.
"""

from itertools import cycle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradwatch
from gradwatch import clip, kernels
from gradwatch.errors import KernelError
from gradwatch.kernels import base

POLICIES = [
    None,
    clip.value(1.0),
    clip.norm(1.0),
    clip.norm(1.0, 3.0),
    clip.per_tensor(1.0),
    clip.agc(0.01),
    clip.value_rms(3.0),
    clip.adaptive(),
    clip.spike_skip(),
    clip.chain(clip.value(1.0), clip.norm(5.0), clip.value(0.5)),
    clip.recommended(clip.per_tensor(1.0)),
    clip.published.autoclip(),
    clip.published.zclip(),
    clip.published.adagc(),
    clip.published.quantile(),
]


class NoFloat64(TorchDispatchMode):
    """Stands for a device without float64: refuses to make such a tensor there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta and leaf.dtype is torch.float64:
                raise TypeError(f"{func} makes a float64 tensor on a device that has none")
        return result


@pytest.fixture
def no_float64(monkeypatch):
    monkeypatch.setattr(base, "accumulator", lambda device: torch.float32)
    for module in ("clipping.buffer", "kernels", "kernels.sampling"):
        monkeypatch.setattr(f"gradwatch.{module}.accumulator", lambda device: torch.float32)


@pytest.mark.parametrize(
    ("policy", "nonfinite"), list(zip(POLICIES, cycle(["keep", "zero", "skip"]), strict=False))
)
def test_no_policy_needs_float64_where_the_device_has_none(policy, nonfinite, no_float64):
    def gradients():
        kinds = [torch.float32, torch.float16, torch.bfloat16]
        return [torch.zeros(3, 40, device="meta", dtype=d) for d in kinds]

    clipper = gradwatch.Clipper(
        policy,
        nonfinite=nonfinite,
        optional=["cosine_previous", "cosine_momentum", "weight_norm", "update_norm"],
        histogram_every=1,
    )
    with NoFloat64():
        for _ in range(2):
            stats = clipper.clip_(gradients(), gradients(), momenta=gradients())

    assert stats.buffer.dtype is torch.float32
    assert clipper.kernel == "reference"


def test_the_net_catches_float64():
    with pytest.raises(TypeError, match="float64"), NoFloat64():
        torch.zeros(3, device="meta").double()


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "hpu"])
def test_devices_without_a_kernel_of_their_own_get_the_reference_and_nothing_else(device):
    kernel, reason = kernels.choose("auto", torch.device(device))

    assert (kernel.name, reason) == ("reference", None)
    with pytest.raises(KernelError, match=f"cannot clip gradients on {device}"):
        kernels.choose("cuda", torch.device(device))


@pytest.mark.parametrize("has_float64", [True, False])
def test_statistics_are_kept_in_the_widest_dtype_of_the_device(has_float64, monkeypatch):
    class Properties:
        has_fp64 = has_float64

    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: Properties)
    base.accumulator.cache_clear()
    try:
        wide = base.accumulator(torch.device("xpu", 0))
    finally:
        base.accumulator.cache_clear()

    assert wide is (torch.float64 if has_float64 else torch.float32)
    assert base.accumulator(torch.device("mps")) is torch.float32
