"""Mixed precision: gradients are clipped and measured unscaled, and left-out steps counted once."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from tests.client.collector import collect
from torch import Tensor, nn

import gradwatch

SCALE = 1024.0
LIMIT = 0.01
OVERFLOWS = {2, 3}  # steps whose gradients overflow
STEPS = 8
MATRIX = list(itertools.product([False, True], [False, True]))


def loss_at(model: nn.Module, step: int) -> Tensor:
    torch.manual_seed(step)
    loss: Tensor = model(torch.randn(8, 4)).square().mean()
    return loss * (float("inf") if step in OVERFLOWS else 1.0)


def build(*, fused: bool) -> tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused, foreach=not fused)
    return model, optimizer, torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=3)


def loop(
    *,
    fused: bool,
    unscaled: bool,
    watched: bool,
    clip: Any = gradwatch.clip.value(LIMIT),  # noqa: B008 - a frozen policy
    scaler_given: bool = True,
) -> tuple[list[Tensor], list[float], Any]:
    """Train with a GradScaler; watched, or with the same clipping written out by hand."""
    model, optimizer, scaler = build(fused=fused)
    seen = None
    if watched:
        given = {"scaler": scaler} if scaler_given else {}
        watch = gradwatch.watch(model, optimizer, clip=clip, mode="disabled", **given)
        seen = collect(watch)
    course = []
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_at(model, step)).backward()
        if unscaled or not watched:
            scaler.unscale_(optimizer)
        if not watched and clip is not None:
            gradwatch.clip_grad_(list(model.parameters()), clip)
        scaler.step(optimizer)
        scaler.update()
        course.append(scaler.get_scale())
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    return [p.detach().clone() for p in model.parameters()], course, seen


@pytest.mark.parametrize(("fused", "unscaled"), MATRIX)
@pytest.mark.parametrize("clip", [gradwatch.clip.value(LIMIT), gradwatch.clip.norm(0.05)])
def test_weights_and_the_scales_course_equal_the_loop_that_unscales_and_clips_by_hand(
    fused: bool, unscaled: bool, clip: Any
) -> None:
    expected, course, _ = loop(fused=fused, unscaled=unscaled, watched=False, clip=clip)
    weights, watched_course, _ = loop(fused=fused, unscaled=unscaled, watched=True, clip=clip)
    assert watched_course == course
    assert len(set(course)) > 1
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))


@pytest.mark.parametrize(("fused", "unscaled"), MATRIX)
def test_statistics_are_those_of_the_unscaled_gradients(fused: bool, unscaled: bool) -> None:
    model, _, _ = build(fused=fused)
    loss_at(model, 0).backward()
    true = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    for clip in (None, gradwatch.clip.value(LIMIT)):
        _, _, seen = loop(fused=fused, unscaled=unscaled, watched=True, clip=clip)
        assert seen.rows("norm")[0] == pytest.approx(true, rel=1e-6)
        assert seen.scalars("global_norm")[0] == pytest.approx(
            sum(n * n for n in true) ** 0.5, rel=1e-6
        )


@pytest.mark.parametrize(("fused", "unscaled"), MATRIX)
def test_an_overflow_step_is_counted_exactly_once_as_skipped(fused: bool, unscaled: bool) -> None:
    _, course, seen = loop(fused=fused, unscaled=unscaled, watched=True)
    assert [sample.step for sample in seen.samples] == list(range(STEPS))
    assert seen.scalars("skipped") == [float(step in OVERFLOWS) for step in range(STEPS)]
    nonfinite = [sum(row) > 0 for row in seen.rows("nonfinite_count")]
    assert nonfinite == [step in OVERFLOWS for step in range(STEPS)]
    assert seen.scalars("grad_scale") == [SCALE, *course[:-1]]


@pytest.mark.parametrize("fused", [False, True])
def test_monitoring_alone_changes_no_bit_of_a_scaled_training(fused: bool) -> None:
    model, optimizer, scaler = build(fused=fused)
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_at(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    weights, _, _ = loop(fused=fused, unscaled=False, watched=True, clip=None)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_that_was_not_given_is_found_at_the_first_step_it_makes(fused: bool) -> None:
    _, _, seen = loop(fused=fused, unscaled=False, watched=True, scaler_given=False)
    assert seen.scalars("skipped") == [float(step in OVERFLOWS) for step in range(STEPS)]


def test_a_scaler_that_is_not_the_loops_is_named_and_training_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, optimizer, scaler = build(fused=False)
    watch = gradwatch.watch(
        model, optimizer, clip=gradwatch.clip.value(LIMIT), scaler=scaler, mode="disabled"
    )
    with caplog.at_level("WARNING", "gradwatch"):
        for _ in range(3):
            loss_at(model, 0).backward()
            optimizer.step()
    assert watch.health().steps == {"default": 3}
    assert [record.message for record in caplog.records if "scaler" in record.message] == [
        "watch(scaler=...): optimizer 'default' is stepped without this scaler, so steps that another "
        "one leaves out cannot be counted; pass the scaler whose step() the loop calls."
    ]
    with caplog.at_level("WARNING", "gradwatch"):
        gradwatch.watch(model, optimizer, scaler=object(), mode="disabled")
    assert "not a GradScaler" in caplog.text


def test_a_disabled_scaler_is_no_scaler() -> None:
    model, optimizer, _ = build(fused=False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    watch = gradwatch.watch(model, optimizer, scaler=scaler, mode="disabled")
    seen = collect(watch)
    for _ in range(2):
        scaler.scale(loss_at(model, 0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert seen.scalars("skipped") == [0.0, 0.0]
    assert seen.scalars("grad_scale") == [None, None]


def test_a_watched_scaler_can_be_pickled_and_copied_and_is_given_back() -> None:
    model, optimizer, scaler = build(fused=False)
    watch = gradwatch.watch(model, optimizer, scaler=scaler, mode="disabled")
    for twin in (pickle.loads(pickle.dumps(scaler)), copy.deepcopy(scaler)):  # noqa: S301 - ours
        p = nn.Parameter(torch.ones(1))
        other = torch.optim.SGD([p], lr=1.0)
        twin.scale(p.sum()).backward()
        twin.step(other)
        assert float(p.detach()) == 0.0
    assert watch.health().steps == {"default": 0}
    watch.close()
    assert "step" not in vars(scaler)


def test_bfloat16_autocast_needs_nothing() -> None:
    model, optimizer, _ = build(fused=False)
    watch = gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(0.1), mode="disabled")
    model.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.full((2, 4), 30.0)).square().sum() * 100
    loss.backward()
    optimizer.step()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert {g.dtype for g in grads} == {torch.bfloat16}
    assert all(float(g.double().abs().max()) <= 0.1 for g in grads)
    assert watch.health().errors == 0
