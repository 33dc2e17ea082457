"""Accelerate: before and after ``prepare``, accumulation and a skipped step."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.client.collector import collect
from torch import nn

import gradwatch

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
from gradwatch.integrations.accelerate import attach  # noqa: E402 - after the check above

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, not ours


def build() -> tuple[nn.Module, torch.optim.Optimizer, torch.utils.data.DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    loader: Any = torch.utils.data.DataLoader(data, batch_size=4)
    return model, torch.optim.SGD(model.parameters(), lr=0.01), loader


@pytest.mark.parametrize("prepared_first", [False, True])
def test_real_steps_are_clipped_and_measured_before_and_after_prepare(prepared_first: bool) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader = build()
    clip = gradwatch.clip.norm(0.5)
    if not prepared_first:
        watch = attach(accelerator, model, optimizer, clip=clip, mode="disabled")
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if prepared_first:
        watch = attach(accelerator, model, optimizer, clip=clip, mode="disabled")
    seen = collect(watch)
    used = []
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(100 * model(batch).square().mean())
            optimizer.step()
            if accelerator.sync_gradients:
                used.append(float(torch.stack([p.grad.norm() for p in model.parameters()]).norm()))  # type: ignore[union-attr]  # after backward
            optimizer.zero_grad()
    assert [sample.step for sample in seen.samples] == [0, 1, 2, 3]
    assert seen.announced[0] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert used == pytest.approx([0.5] * 4, rel=1e-5)
    assert watch.health().errors == 0


def test_a_step_that_accelerates_scaler_leaves_out_is_counted_as_skipped() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, _ = build()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    optimizer.scaler = accelerator.scaler
    optimizer._accelerate_step_called = False
    optimizer._optimizer_original_step_method = optimizer.optimizer.step
    optimizer._optimizer_patched_step_method = accelerate.optimizer.patch_optimizer_step(
        optimizer, optimizer.optimizer.step
    )
    seen = collect(attach(accelerator, model, optimizer, mode="disabled"))
    skipped = []
    for factor in (1.0, float("inf"), 1.0):
        loss = model(torch.ones(2, 4)).square().mean() * factor
        accelerator.scaler.scale(loss).backward()
        optimizer.step()
        skipped.append(float(optimizer.step_was_skipped))
        optimizer.zero_grad()
    assert skipped == [0.0, 1.0, 0.0]
    assert seen.scalars("skipped") == skipped


def test_sharding_engines_are_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, _ = build()
    for kind in ("FSDP", "DEEPSPEED"):
        monkeypatch.setattr(type(accelerator), "distributed_type", accelerate.DistributedType[kind])
        with pytest.raises(gradwatch.errors.WatchError, match=kind):
            attach(accelerator, model, optimizer)


def test_the_example_trains_and_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "STEPS": "6",
        "GRADWATCH_MODE": "offline",
        "GRADWATCH_DIR": "spool",
    }.items():
        monkeypatch.setenv(name, value)
    example = Path(__file__).parents[3] / "examples" / "accelerate_loop.py"
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert "gradwatch: steps: 6" in capsys.readouterr().out
