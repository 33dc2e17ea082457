"""The hook under every optimizer, every odd way to step one, and without a single read-back."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.client.collector import collect
from tests.client.no_host_sync import no_host_sync
from torch import Tensor, nn

import gradwatch
from gradwatch.errors import WatchError

CLIP = gradwatch.clip.chain(gradwatch.clip.value(0.05), gradwatch.clip.norm(0.1))
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p, **how: torch.optim.SGD(p, lr=0.1, momentum=0.9, **how),
    "Adam": lambda p, **how: torch.optim.Adam(p, lr=0.01, **how),
    "AdamW": lambda p, **how: torch.optim.AdamW(p, lr=0.01, **how),
    "Adagrad": lambda p, **how: torch.optim.Adagrad(p, lr=0.01, **how),
    "RMSprop": lambda p, **how: torch.optim.RMSprop(p, lr=0.01, **how),
}
HOW: dict[str, dict[str, bool]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def backward(model: nn.Module, step: int = 0) -> Tensor:
    model.zero_grad()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    loss: Tensor = 10 * model(x).square().mean()
    loss.backward()
    return loss


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("name", "how"),
    # torch has no fused RMSprop
    [(n, h) for n in OPTIMIZERS for h in HOW if (n, h) != ("RMSprop", "fused")],
)
def test_every_optimizer_steps_with_the_clipped_gradient(name: str, how: str) -> None:
    final = []
    for watched in (False, True):
        model = build()
        optimizer = OPTIMIZERS[name](model.parameters(), **HOW[how])
        if watched:
            gradwatch.watch(model, optimizer, clip=CLIP, mode="disabled")
        for step in range(5):
            backward(model, step)
            if not watched:
                gradwatch.clip_grad_(list(model.parameters()), CLIP)
            optimizer.step()
        final.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*final, strict=True))


def test_an_optimizer_that_climbs_first_and_steps_then_is_watched_where_it_steps() -> None:
    class SharpnessAware(torch.optim.Optimizer):
        """Foret et al. 2021: two backward passes, one step of the optimizer inside."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure: Any = None) -> Any:
            closure()
            moved = []
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        moved.append((p, 0.05 * p.grad))
                        p.add_(moved[-1][1])
            loss = closure()
            with torch.no_grad():
                for p, by in moved:
                    p.sub_(by)
            self.inner.step()
            return loss

    model = build()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = collect(gradwatch.watch(model, inner, clip=gradwatch.clip.norm(0.1), mode="disabled"))
    outer = SharpnessAware(inner)
    for step in range(3):
        outer.step(lambda step=step: backward(model, step))
    assert [sample.step for sample in seen.samples] == [0, 1, 2]
    assert seen.scalars("global_norm_after") == pytest.approx([0.1] * 3, rel=1e-5)


def test_a_closure_evaluated_several_times_is_reported_by_its_first_and_counted() -> None:
    model = build()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    seen = collect(gradwatch.watch(model, optimizer, clip=CLIP, mode="disabled"))
    raw: list[float] = []

    def closure() -> Tensor:
        loss = backward(model)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        raw.append(float(nn.utils.get_total_norm(grads)))
        return loss

    counts = []
    for _ in range(2):
        before = len(raw)
        optimizer.step(closure)
        counts.append(len(raw) - before)
        assert seen.scalars("global_norm")[-1] == pytest.approx(raw[before], rel=1e-5)
    assert seen.scalars("closure_evaluations") == [float(count) for count in counts]
    assert min(counts) > 1


def test_a_parameter_of_two_optimizers_is_watched_by_both() -> None:
    model = build()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    watch = gradwatch.watch(model, [first, second], clip=CLIP, mode="disabled")
    backward(model)
    first.step()
    second.step()
    assert watch.health().steps == {"optimizer_0": 1, "optimizer_1": 1}


def test_with_every_k_each_step_is_clipped_and_what_happens_in_between_is_counted() -> None:
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = gradwatch.watch(
        model, optimizer, clip=gradwatch.clip.value(1e9), every=4, nonfinite="zero", mode="disabled"
    )
    seen = collect(watch)
    for step in range(9):
        backward(model)
        if step in (2, 3, 5):
            next(model.parameters()).grad.view(-1)[0] = float("nan")  # type: ignore[union-attr]
        optimizer.step()
    assert [sample.step for sample in seen.samples] == [0, 4, 8]
    assert seen.scalars("steps_since") == [1.0, 4.0, 4.0]
    assert seen.scalars("nonfinite_steps_since") == [0.0, 2.0, 1.0]
    assert seen.scalars("clipped_steps_since") == [0.0, 0.0, 0.0]


def test_an_optimizer_per_parameter_inside_backward_clips_each_and_has_no_joint_norm() -> None:
    final = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(10)))
        optimizers = {n: torch.optim.SGD([p], lr=0.1) for n, p in model.named_parameters()}
        names = {p: n for n, p in model.named_parameters()}
        if watched:
            with pytest.raises(WatchError, match="joint norm"):
                gradwatch.watch(model, optimizers, clip=CLIP, mode="disabled")
            watch = gradwatch.watch(
                model, optimizers, clip=gradwatch.clip.value(0.01), mode="disabled"
            )

        def step(
            p: nn.Parameter, watched: bool = watched, by: Any = optimizers, of: Any = names
        ) -> None:
            if not watched:
                gradwatch.clip_grad_([p], gradwatch.clip.value(0.01))
            by[of[p]].step()
            p.grad = None

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        for _ in range(3):
            (10 * model(torch.ones(2, 4))).square().sum().backward()
        final.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*final, strict=True))
    assert set(watch.health().steps.values()) == {3}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "clip",
    [
        None,
        CLIP,
        gradwatch.clip.agc(0.01),
        gradwatch.clip.recommended(gradwatch.clip.norm(1.0), interval=2),
        {"*weight": gradwatch.clip.value(0.1), "*": gradwatch.clip.per_tensor(1.0)},
    ],
    ids=["none", "chain", "agc", "recommended", "mapping"],
)
def test_the_whole_hook_reads_nothing_back(
    device: str, every: int, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWATCH_KERNEL", "reference")
    model = build().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device=device)  # as capturable ones have it
    watch = gradwatch.watch(model, optimizer, clip=clip, every=every, mode="disabled")
    tracked = watch.tracked[0]
    tracked.check_every = 1
    seen = collect(watch)
    for step in range(4):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        # What a fused optimizer is handed by a GradScaler, all of it on the device.
        optimizer.grad_scale = torch.full((), 2.0, device=device)  # type: ignore[attr-defined]
        optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]
        loss = torch.ones((), device=device)
        # The first step may bring constants to the device; no later one may.
        with no_host_sync() if step else nullcontext():
            tracked.on_gradients(optimizer, None)
            watch.log(loss=loss)
            tracked.on_stepped(optimizer)
    assert watch.health().errors == 0
    assert len(seen.samples) == len(range(0, 4, every))
    assert {"loss", "skipped", "weight_checksum"} <= set(seen.samples[-1].scalars)
