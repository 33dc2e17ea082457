"""Hugging Face Trainer: clipped exactly once, by us; without a policy bit for bit as before."""

import logging
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.client.collector import collect
from torch import Tensor, nn

import gradwatch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from gradwatch.integrations.transformers import attach  # noqa: E402 - after the check above

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, not ours


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": 100 * (self.net(x) - labels).square().mean()}


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, poison: int | None = None) -> None:
        self.x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
        if poison is not None:
            self.x[poison:] = float("nan")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.x[index].sum(0, keepdim=True)}


class Logs(transformers.TrainerCallback):  # type: ignore[misc]  # untyped base where missing
    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))


def trainer(folder: Path, rows: Rows | None = None, **arguments: Any) -> tuple[Any, Logs]:
    torch.manual_seed(0)
    logs = Logs()
    options = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        **arguments,
    }
    made = transformers.Trainer(
        model=Regression(),
        args=transformers.TrainingArguments(**options),
        train_dataset=rows or Rows(),
        callbacks=[logs],
    )
    return made, logs


def weights(made: Any) -> list[Tensor]:
    return [p.detach().clone() for p in made.model.parameters()]


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_gradients_are_clipped_exactly_once_and_the_logged_norm_is_ours(
    tmp_path: Path, max_grad_norm: float
) -> None:
    made, logs = trainer(tmp_path, max_grad_norm=max_grad_norm)
    watch = attach(made, clip=gradwatch.clip.norm(2.0), mode="disabled")
    seen = collect(watch)
    made.train()
    assert [sample.step for sample in seen.samples] == list(range(6))
    assert watch.tracked[0].layout.tensors[0].name == "net.0.weight"
    before = seen.scalars("global_norm")
    assert logs.norms == pytest.approx(before, rel=1e-6)
    assert min(logs.norms) > 2.0
    assert seen.scalars("global_norm_after") == pytest.approx([2.0] * 6, rel=1e-6)
    losses = [value for value in seen.scalars("loss") if value is not None]
    assert len(losses) == 6
    expected = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert losses == pytest.approx(expected, rel=1e-3)


def test_without_a_policy_the_trainer_trains_bit_for_bit_as_before(tmp_path: Path) -> None:
    final = []
    for watched in (False, True):
        made, logs = trainer(tmp_path, max_grad_norm=1.0)
        if watched:
            seen = collect(attach(made, mode="disabled"))
        made.train()
        final.append(weights(made))
    assert all(torch.equal(a, b) for a, b in zip(*final, strict=True))
    assert seen.scalars("global_norm") == pytest.approx(logs.norms, rel=1e-5)


def test_a_resumed_training_goes_on_at_its_step(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, save_strategy="steps", save_steps=4)
    attach(made, clip=gradwatch.clip.norm(2.0), mode="disabled")
    made.train()
    assert (tmp_path / "checkpoint-4" / "gradwatch.pt").exists()
    again, _ = trainer(tmp_path, save_strategy="steps", save_steps=4)
    seen = collect(attach(again, clip=gradwatch.clip.norm(2.0), mode="disabled"))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [sample.step for sample in seen.samples] == [4, 5]


def test_a_dead_run_is_stopped_and_the_spool_lies_under_the_output_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    made, _ = trainer(tmp_path, Rows(poison=0), max_steps=400)
    watch = attach(made, clip=gradwatch.clip.norm(2.0), mode="offline", stop_on={"nonfinite": 3})
    assert watch.settings.directory == tmp_path / "gradwatch"
    with caplog.at_level(logging.WARNING):
        made.train()
    assert watch.should_stop
    assert 3 <= made.state.global_step < 400
    assert watch.health().clipping is False  # closed with the training


def test_the_example_trains_and_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "STEPS": "6",
        "GRADWATCH_MODE": "offline",
        "GRADWATCH_DIR": "spool",
    }.items():
        monkeypatch.setenv(name, value)
    example = Path(__file__).parents[3] / "examples" / "hf_trainer.py"
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert "gradwatch: steps: 6" in capsys.readouterr().out
