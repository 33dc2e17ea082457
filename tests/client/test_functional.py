import math

import pytest
import torch
from tests import reference

import gradwatch
from gradwatch import clip
from gradwatch.errors import PolicyError

torch.set_num_threads(1)


def parameters(scale=3.0, dtype=torch.float32, seed=0):
    source = torch.Generator().manual_seed(seed)
    made = []
    for shape in [(20, 10), (7,), ()]:
        parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        parameter.grad = (torch.randn(shape, generator=source) * scale).to(dtype)
        made.append(parameter)
    return [*made, torch.nn.Parameter(torch.zeros(2))]  # the last one has no gradient


def all_bits(tensors):
    return [reference.bits(p.grad) for p in tensors if p.grad is not None]


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("limit", [0.1, 1.0, 1e4])
def test_norm_clipping_returns_and_leaves_what_torchs_does(order, limit):
    ours, theirs = parameters(), parameters()

    got = gradwatch.clip_grad_norm_(ours, limit, order)
    want = torch.nn.utils.clip_grad_norm_(theirs, limit, order)

    torch.testing.assert_close(got, want, rtol=2e-6, atol=0)
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=5e-6, atol=1e-9)


@pytest.mark.parametrize("foreach", [None, True, False])
def test_exact_torch_is_torch_bit_for_bit(foreach):
    ours, theirs = parameters(), parameters()

    got = gradwatch.clip_grad_norm_(ours, 1.0, foreach=foreach, exact_torch=True)
    want = torch.nn.utils.clip_grad_norm_(theirs, 1.0, foreach=foreach)
    gradwatch.clip_grad_value_(ours, 0.1, foreach=foreach, exact_torch=True)
    torch.nn.utils.clip_grad_value_(theirs, 0.1, foreach=foreach)

    assert reference.bits(got) == reference.bits(want)
    assert all_bits(ours) == all_bits(theirs)


def test_value_clipping_returns_nothing_as_torch_does():
    ours, theirs = parameters(), parameters()

    assert gradwatch.clip_grad_value_(ours, 0.5) is None
    torch.nn.utils.clip_grad_value_(theirs, 0.5)

    assert all_bits(ours) == all_bits(theirs)  # 0.5 is exact in every dtype


def test_an_infinite_limit_only_measures():
    ours = parameters()
    before = all_bits(ours)

    norm = gradwatch.clip_grad_norm_(ours, math.inf)

    assert all_bits(ours) == before
    assert norm.item() == pytest.approx(
        torch.cat([p.grad.flatten() for p in ours[:3]]).norm().item()
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=repr)
def test_the_returned_norm_shows_that_an_element_is_not_finite(bad):
    ours = parameters()
    ours[0].grad[0, 0] = bad

    norm = gradwatch.clip_grad_norm_(ours, 1.0)

    assert not norm.isfinite()
    assert ours[1].grad.isfinite().all()


def test_error_if_nonfinite_raises_before_anything_is_changed():
    ours = parameters()
    ours[0].grad[0, 0] = math.nan
    before = all_bits(ours)

    with pytest.raises(RuntimeError, match="not finite"):
        gradwatch.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)

    assert all_bits(ours) == before


def test_a_single_tensor_a_generator_and_nothing_at_all_are_accepted():
    ours = parameters()

    assert gradwatch.clip_grad_norm_(ours[0], 1.0) > 1
    assert gradwatch.clip_grad_norm_((p for p in ours), 1.0) > 0
    assert gradwatch.clip_grad_norm_([], 1.0).item() == 0.0
    assert gradwatch.clip_grad_norm_(ours[3:], 1.0).item() == 0.0
    assert gradwatch.clip_grad_value_([], 1.0) is None
    assert gradwatch.clip_grad_([], clip.norm(1.0)).to_dict()["norm"] == []


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan], ids=repr)
def test_limits_with_which_torch_would_flip_or_erase_gradients_are_refused(bad):
    with pytest.raises(PolicyError):
        gradwatch.clip_grad_norm_(parameters(), bad)
    with pytest.raises(PolicyError):
        gradwatch.clip_grad_value_(parameters(), bad)


def test_a_tied_parameter_counts_once():
    ours = parameters()

    stats = gradwatch.clip_grad_([ours[0], ours[1], ours[0]], clip.norm(1.0))

    assert stats.norm.shape == (2,)
    assert stats.to_dict()["global_norm_after"] == pytest.approx(1.0)


def test_named_parameters_give_names_and_may_have_patterns():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    model(torch.ones(1, 3)).sum().mul(1e3).backward()

    policy = {"0.*": clip.value(0.1), "*": clip.norm(2.0)}
    stats = gradwatch.clip_grad_(model.named_parameters(), policy)

    assert stats.to_dict()["names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert model[0].weight.grad.abs().max() <= 0.1
    last = torch.cat([p.grad.flatten() for p in model[1].parameters()])
    assert last.norm().item() == pytest.approx(2.0)


def test_a_policy_that_learns_from_step_to_step_needs_a_clipper():
    with pytest.raises(PolicyError, match=r"gradwatch\.Clipper"):
        gradwatch.clip_grad_(parameters(), clip.value_rms(3.0))


def test_no_policy_measures_and_leaves_every_bit():
    ours = parameters()
    before = all_bits(ours)

    stats = gradwatch.clip_grad_(ours, None).to_dict()

    assert all_bits(ours) == before
    assert stats["threshold"] is None
    assert stats["norm"] == stats["norm_after"]
    assert stats["present"] == [1, 1, 1, 0]


def test_an_unknown_kernel_is_refused_and_the_environment_can_choose_one(monkeypatch):
    with pytest.raises(gradwatch.errors.KernelError, match="auto, reference, cpu, cuda"):
        gradwatch.clip_grad_(parameters(), None, kernel="fast")
    monkeypatch.setenv("GRADWATCH_KERNEL", "reference")
    clipper = gradwatch.Clipper(None)
    clipper.clip_([torch.ones(2)])
    assert clipper.kernel == "reference"
    monkeypatch.setenv("GRADWATCH_KERNEL", "cuda")
    with pytest.raises(gradwatch.errors.KernelError, match="cuda"):
        gradwatch.clip_grad_(parameters(), None)
