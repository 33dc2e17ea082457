"""Every kind of gradient that torch makes: clipped as its elements, or refused before anything changed."""

import pytest
import torch
from tests import reference
from tests.client.gradient_cases import KERNELS, values_of

import gradwatch
from gradwatch import clip
from gradwatch.errors import GradientError
from gradwatch.kernels import Gradients

torch.set_num_threads(1)

every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def randn(*shape, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), **kwargs) * 2


def nonoverlapping_with_gaps():
    return randn(6, 10)[:, ::2]


DENSE = {
    "0-dim": lambda: torch.tensor(-3.0),
    "empty": lambda: torch.zeros(0, 4),
    "transposed": lambda: randn(5, 7).t(),
    "with gaps": nonoverlapping_with_gaps,
    "channels last": lambda: randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "offset": lambda: randn(40)[3:17],
    "complex": lambda: torch.complex(randn(4, 4), randn(4, 4)),
    "one row expanded": lambda: randn(1, 6).expand(5, 6),
    "one number expanded": lambda: torch.tensor(3.0).expand(4, 5),
    "sparse": lambda: randn(7, 3).mul((torch.arange(7) % 2)[:, None]).to_sparse(1).coalesce(),
    "large": lambda: randn(3, 70_001),
}


@every_kernel
@pytest.mark.parametrize("make", DENSE.values(), ids=DENSE.keys())
@pytest.mark.parametrize(
    "policy", [clip.value(1.0), clip.norm(1.0), None], ids=["value", "norm", "none"]
)
def test_a_gradient_of_any_layout_is_clipped_as_its_elements(kernel, make, policy):
    grad = make()
    before = values_of(grad)

    stats = gradwatch.Clipper(policy, kernel=kernel).clip_([grad]).to_dict()

    after = values_of(grad)
    want = reference.measured(before, after)
    if policy == clip.value(1.0):
        assert after == reference.clipped(before, 1.0)
        assert stats["clipped_count"] == [want.clipped_count]
    if policy == clip.norm(1.0):
        assert want.norm_after <= 1 + 1e-6
    if policy is None:
        assert after == before
    for name in ("norm", "max_abs", "mean", "norm_after", "cosine_after"):
        assert stats[name] == pytest.approx([getattr(want, name)], rel=1e-5, abs=1e-7), name
    for name in ("nonfinite_count", "zero_count"):
        assert stats[name] == [getattr(want, name)]


@every_kernel
@pytest.mark.parametrize("make", DENSE.values(), ids=DENSE.keys())
def test_several_gradients_of_one_layout_are_clipped_as_each_alone(kernel, make):
    alone = make()
    want = gradwatch.Clipper(clip.value(1.0), kernel=kernel).clip_([alone]).to_dict()
    several = [make() for _ in range(3)]

    stats = gradwatch.Clipper(clip.value(1.0), kernel=kernel).clip_(several).to_dict()

    assert [values_of(grad) for grad in several] == [values_of(alone)] * 3
    for name in ("norm", "mean", "clipped_count", "norm_after", "cosine_after"):
        assert stats[name] == pytest.approx(want[name] * 3, rel=1e-6, abs=1e-9), name


REFUSED = {
    "sparse": lambda: torch.sparse_coo_tensor([[1, 1]], [2.0, 3.0], (4,), check_invariants=True),
    "elements that share memory": lambda: torch.arange(6.0).as_strided((3, 3), (1, 1)),
    "dtype": lambda: torch.ones(3, dtype=torch.int64),
    "layout": lambda: torch.eye(3).to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@every_kernel
@pytest.mark.parametrize(("word", "make"), REFUSED.items(), ids=REFUSED.keys())
def test_a_gradient_that_cannot_be_clipped_is_refused_by_name_before_anything_changed(
    kernel, word, make
):
    good = torch.full((3,), 9.0)
    clipper = gradwatch.Clipper(clip.value(1.0), ["good", "bad.weight"], kernel=kernel)

    with pytest.raises(GradientError, match=word) as error:
        clipper.clip_([good, make()])

    assert "bad.weight" in str(error.value)
    assert good.tolist() == [9.0, 9.0, 9.0]


@every_kernel
def test_a_missing_gradient_has_present_0_and_no_part_in_any_number(kernel):
    grads = [None, torch.tensor([3.0, 4.0]), None]

    stats = gradwatch.Clipper(clip.norm(1.0), kernel=kernel).clip_(grads).to_dict()

    assert stats["present"] == [0, 1, 0]
    assert all(stats[name][0] == 0 for name in gradwatch.statistics.STATISTICS)
    assert stats["global_norm"] == 5.0


@every_kernel
@pytest.mark.parametrize("nothing", [[], [None, None]], ids=["no tensors", "no gradients"])
def test_nothing_to_clip_gives_empty_statistics(kernel, nothing):
    stats = gradwatch.Clipper(clip.chain(clip.value(1.0), clip.norm(1.0)), kernel=kernel).clip_(
        nothing
    )

    assert stats.to_dict()["global_norm"] == 0.0
    assert stats.norm.shape == (len(nothing),)


@every_kernel
def test_a_gradient_in_two_places_is_clipped_once(kernel):
    shared = torch.tensor([3.0, 4.0])

    stats = gradwatch.Clipper(clip.norm(1.0), kernel=kernel).clip_([shared, shared]).to_dict()

    assert shared.tolist() == pytest.approx([0.6, 0.8])
    assert stats["global_norm"] == 5.0


def test_gradients_on_several_devices_are_clipped_by_their_joint_norm(monkeypatch):
    # One CPU plays two devices: the gradients are divided as if the second lived elsewhere.
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 40.0]), None]
    devices = [torch.device("cpu"), torch.device("cpu", 0)]
    monkeypatch.setattr(
        "gradwatch.clipping.gradients.Prepared.by_device",
        lambda prepared: [
            (devices[0], Gradients.of([prepared.gradients.tensors[0], None, None])),
            (devices[1], Gradients.of([None, prepared.gradients.tensors[1], None])),
        ],
    )
    policy = clip.chain(clip.value(4.0), clip.norm(2.5))

    stats = gradwatch.Clipper(policy, nonfinite="skip").clip_(grads).to_dict()

    assert [g.tolist() for g in grads[:2]] == [pytest.approx([1.5, 0.0]), pytest.approx([0.0, 2.0])]
    assert stats["norm"] == [3.0, 40.0, 0.0]
    assert stats["norm_after"] == pytest.approx([1.5, 2.0, 0.0])
    assert stats["clipped_count"] == [2, 2, 0]


@every_kernel
def test_tensors_of_mixed_dtypes_share_one_norm(kernel):
    grads = [torch.full((4,), 3.0, dtype=d) for d in (torch.float64, torch.float32, torch.bfloat16)]

    stats = gradwatch.Clipper(clip.norm(1.0), kernel=kernel).clip_(grads).to_dict()

    assert stats["global_norm"] == pytest.approx(108**0.5)
    assert stats["global_norm_after"] == pytest.approx(1.0, rel=3e-3)


def test_agc_refuses_gradients_without_rows():
    clipper = gradwatch.Clipper(clip.agc())

    with pytest.raises(GradientError, match="parameters"):
        clipper.clip_([torch.ones(3)])
    with pytest.raises(GradientError, match="whole rows"):
        clipper.clip_([torch.ones(1, 3).expand(4, 3)], [torch.ones(4, 3)])


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(GradientError, match="2 gradients for 1 names"):
        gradwatch.Clipper(None, ["a"]).clip_([torch.ones(1), torch.ones(1)])
    with pytest.raises(GradientError, match="1 gradients for 2 parameters"):
        gradwatch.Clipper(None).clip_([torch.ones(1)], [torch.ones(1), torch.ones(1)])
