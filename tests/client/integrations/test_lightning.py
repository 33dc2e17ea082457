"""Lightning: this step's raw gradient under every way of optimizing, and one clipping."""

import logging
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.client.collector import Collector, collect
from torch import Tensor, nn

import gradwatch

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
from gradwatch.integrations.lightning import GradwatchCallback  # noqa: E402 - after the check above

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, not ours
STEPS = 5


class Module(pl.LightningModule):  # type: ignore[misc,name-defined]  # untyped base where missing
    def __init__(
        self, optimizer: str = "SGD", *, manual: bool = False, poison: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.automatic_optimization = not manual
        self.optimizer = optimizer
        self.poison = poison
        self.raw: list[float] = []
        self.used: list[float] = []

    def loss(self, batch: Tensor) -> Tensor:
        loss: Tensor = 100 * self.net(batch).square().mean()
        return loss * float("nan") if self.poison else loss

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = self.loss(batch)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def on_after_backward(self) -> None:
        self.raw.append(self.norm())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.used.append(self.norm())

    def norm(self) -> float:
        return float(
            torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "LBFGS":
            return torch.optim.LBFGS(self.parameters(), lr=1e-3, max_iter=3)
        if self.optimizer == "fused":
            return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Watching(GradwatchCallback):
    """The callback, with what it hands over kept."""

    seen: Collector

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        assert self.watch is not None
        self.seen = collect(self.watch)


def fit(module: Module, folder: Path, callback: GradwatchCallback, **options: Any) -> Any:
    data = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    chosen = {"max_steps": STEPS, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback],
        **chosen,
    )
    resume = chosen.pop("ckpt_path", None)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("optimizer", ["SGD", "fused"])
@pytest.mark.parametrize("manual", [False, True])
def test_every_step_shows_its_own_gradient_and_is_clipped_once(
    tmp_path: Path, optimizer: str, manual: bool
) -> None:
    module = Module(optimizer, manual=manual)
    callback = Watching(clip=gradwatch.clip.norm(2.0), mode="disabled")
    fit(module, tmp_path, callback)
    assert callback.seen.announced[0][0] == "net.0.weight"
    assert callback.seen.scalars("global_norm") == pytest.approx(module.raw, rel=1e-5)
    assert callback.seen.scalars("global_norm_after") == pytest.approx([2.0] * STEPS, rel=1e-5)
    if not manual:
        assert module.used == pytest.approx([2.0] * STEPS, rel=1e-5)
    assert None not in callback.seen.scalars("loss")


def test_each_evaluation_of_lbfgs_is_clipped_and_the_first_is_reported(tmp_path: Path) -> None:
    module = Module("LBFGS")
    callback = Watching(clip=gradwatch.clip.norm(2.0), mode="disabled")
    fit(module, tmp_path, callback)
    assert [sample.step for sample in callback.seen.samples] == list(range(STEPS))
    assert callback.seen.scalars("global_norm")[0] == pytest.approx(module.raw[0], rel=1e-5)
    assert module.used == pytest.approx([2.0] * STEPS, rel=1e-5)


def test_accumulated_gradients_are_seen_once_per_real_step(tmp_path: Path) -> None:
    module = Module()
    callback = Watching(clip=gradwatch.clip.value(0.1), mode="disabled")
    fit(module, tmp_path, callback, accumulate_grad_batches=2)
    assert callback.seen.scalars("global_norm") == pytest.approx(module.raw[1::2], rel=1e-5)


def test_lightnings_own_clipping_is_measured_before_and_named_when_it_comes_on_top(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Module()
    callback = Watching(mode="disabled")
    fit(module, tmp_path, callback, gradient_clip_val=1.0)
    assert callback.seen.scalars("global_norm") == pytest.approx(module.raw, rel=1e-5)
    assert module.used == pytest.approx([1.0] * STEPS, rel=1e-4)
    with caplog.at_level(logging.WARNING, "gradwatch"):
        clips = Watching(clip=gradwatch.clip.norm(2.0), mode="disabled")
        fit(Module(), tmp_path, clips, gradient_clip_val=1.0, max_steps=1)
    assert "clips a second time" in caplog.text


def test_a_checkpoint_holds_the_step_and_a_dead_run_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    first = Watching(clip=gradwatch.clip.norm(2.0), mode="disabled")
    trainer = fit(Module(), tmp_path, first)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    second = Watching(clip=gradwatch.clip.norm(2.0), mode="disabled")
    saved = tmp_path / "saved.ckpt"
    data = torch.utils.data.DataLoader(torch.randn(40, 4), batch_size=4)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    again = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS + 2,
        callbacks=[second],
        default_root_dir=tmp_path,
        **options,
    )
    again.fit(Module(), data, ckpt_path=saved)
    assert [sample.step for sample in second.seen.samples] == [STEPS, STEPS + 1]
    dead = GradwatchCallback(mode="offline", stop_on={"nonfinite": 3})
    stopped = fit(Module(poison=True), tmp_path, dead, max_steps=2000)
    assert dead.watch is not None
    assert dead.watch.should_stop
    assert 3 <= stopped.global_step < 2000
    assert dead.watch.settings.directory == tmp_path / "gradwatch"


def test_an_exception_in_training_closes_the_watch_as_failed(tmp_path: Path) -> None:
    module = Module()
    module.on_train_batch_start = lambda *_: 1 / 0
    callback = GradwatchCallback(mode="disabled")
    with pytest.raises(ZeroDivisionError):
        fit(module, tmp_path, callback)
    assert callback.watch is not None
    assert not callback.watch.health().clipping


def test_the_example_trains_and_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "STEPS": "6",
        "GRADWATCH_MODE": "offline",
        "GRADWATCH_DIR": "spool",
    }.items():
        monkeypatch.setenv(name, value)
    example = Path(__file__).parents[3] / "examples" / "lightning_loop.py"
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert "gradwatch: steps: 6" in capsys.readouterr().out
