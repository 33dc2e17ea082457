import math

import pytest
import torch
from tests.client.no_host_sync import HostReadError, no_host_sync

import gradwatch
from gradwatch import clip

POLICIES = [
    None,
    clip.value(1.0),
    clip.norm(1.0),
    clip.norm(1.0, 1.0),
    clip.norm(1.0, math.inf),
    clip.per_tensor(1.0),
    clip.agc(0.01),
    clip.value_rms(3.0),
    clip.chain(clip.value(1.0), clip.norm(5.0), clip.value(0.5)),
    clip.schedule({0: 1.0, 2: clip.norm(1.0)}),
    clip.recommended(clip.norm(1.0)),
    {"a*": clip.value(1.0), "*": clip.chain(clip.norm(1.0), clip.agc())},
]


def gradients(count, device):
    return [torch.zeros(3, 4, device=device) for _ in range(count)]


@pytest.mark.parametrize("nonfinite", ["keep", "zero", "skip"])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_no_policy_reads_a_value_back_to_the_host(policy, nonfinite):
    # Meta tensors have shapes but no values: reading one raises.
    grads, weights = gradients(3, "meta"), gradients(3, "meta")
    clipper = gradwatch.Clipper(
        policy,
        ["a1", "a2", "b"],
        nonfinite=nonfinite,
        optional=["cosine_previous", "weight_norm", "update_norm"],
        histogram_every=1,
    )
    clipper.clip_(grads, weights)  # the first step makes thresholds out of the policy's numbers

    with no_host_sync():
        for _ in range(3):
            stats = clipper.clip_(grads, weights)
        if clipper.interval:
            clipper.follow(0.5, version=1)

    assert stats.norm.shape == (3,)
    assert stats.norm.device.type == "meta"


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_same_holds_on_real_tensors_where_other_reads_would_pass_unseen(policy):
    grads, weights = gradients(3, "cpu"), gradients(3, "cpu")
    clipper = gradwatch.Clipper(policy, ["a1", "a2", "b"], kernel="reference")
    clipper.clip_(grads, weights)

    with no_host_sync():
        clipper.clip_(grads, weights)


def test_scaling_takes_as_many_operations_for_a_hundred_tensors_as_for_ten():
    def products(count):
        clipper = gradwatch.Clipper(clip.norm(1.0), kernel="reference")
        grads = gradients(count, "meta")
        clipper.clip_(grads)
        with no_host_sync() as operations:
            clipper.clip_(grads)
        return {n: c for n, c in operations.counts.items() if n.startswith("_foreach")}

    assert products(10) == products(100) != {}


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda t: t.sum().item(), id="item"),
        pytest.param(lambda t: bool(t.sum() > 0), id="bool"),
        pytest.param(lambda t: float(t.sum()), id="float"),
        pytest.param(lambda t: t.tolist(), id="tolist"),
        pytest.param(lambda t: t.cpu(), id="cpu"),
        pytest.param(lambda t: f"{t}", id="format"),
        pytest.param(lambda t: t[t > 0], id="mask"),
        pytest.param(lambda t: torch._foreach_clamp_max_([t], t.sum()), id="foreach clamp"),
    ],
)
def test_the_net_catches_every_known_way_to_wait_for_the_device(read):
    with pytest.raises(HostReadError), no_host_sync():
        read(torch.ones(3))
