"""Another tracker gets what the service gets, and can hurt nobody."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradwatch
from gradwatch.sinks import Figures, TensorBoard

STEPS = 12


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    torch.set_num_threads(1)


class Recorder:
    """Notes what it is given, and on which thread."""

    def __init__(self) -> None:
        self.figures: list[Figures] = []
        self.threads: set[str] = set()
        self.closed = 0

    def write(self, figures: Figures) -> None:
        self.figures.append(figures)
        self.threads.add(threading.current_thread().name)

    def close(self) -> None:
        self.closed += 1


class Broken(Recorder):
    def write(self, figures: Figures) -> None:
        raise OSError(f"no room for step {figures.step}")


class Hanging(Recorder):
    def __init__(self, gate: threading.Event) -> None:
        super().__init__()
        self.gate = gate

    def write(self, figures: Figures) -> None:
        self.gate.wait(30.0)


def train(directory: Path, *sinks: Any, timeout: float = 10.0) -> tuple[list[float], Tensor]:
    """Train and log; the losses and the weights."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy = gradwatch.clip.norm(0.5)
    watch = gradwatch.watch(model, optimizer, clip=policy, mode="offline", spool=directory)
    for sink in sinks:
        watch.add_sink(sink)
    losses = []
    for _ in range(STEPS):
        loss = model(torch.randn(5, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.log(loss=loss)
        losses.append(float(loss.detach()))
    watch.close(timeout=timeout)
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_sink_gets_every_step_with_its_scalars_from_a_thread_of_its_own(tmp_path: Path) -> None:
    sink = Recorder()
    losses, _ = train(tmp_path, sink)
    assert [f.step for f in sink.figures] == list(range(STEPS))
    assert [f.scalars["loss"] for f in sink.figures] == losses
    assert sink.threads == {"gradwatch-sink"}
    assert sink.closed == 1
    norms = sink.figures[0].tensors("norm")
    assert list(norms) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    joint = sink.figures[0].scalars["global_norm"]
    assert joint == pytest.approx(sum(norm**2 for norm in norms.values()) ** 0.5)
    assert sink.figures[0].tensors("unheard_of") == {}


def test_a_sink_that_fails_or_hangs_hurts_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = train(tmp_path / "alone")
    gate, well = threading.Event(), Recorder()
    with caplog.at_level(logging.WARNING, "gradwatch"):
        _, weights = train(tmp_path / "beside", Broken(), Hanging(gate), well, timeout=1.0)
    gate.set()
    assert torch.equal(weights, expected)
    assert len(well.figures) == STEPS
    assert "sink Broken failed: OSError: no room for step 0" in caplog.text


def test_tensorboard_reads_what_was_measured(tmp_path: Path) -> None:
    name = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(name, reason="needs gradwatch[tensorboard]")
    recorder = Recorder()
    losses, _ = train(tmp_path / "spool", TensorBoard(tmp_path / "events"), recorder)
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    read = events.Scalars("gradwatch/loss")
    assert [event.step for event in read] == list(range(STEPS))
    assert [event.value for event in read] == pytest.approx(losses)
    measured = [figures.tensors("norm")["1.weight"] for figures in recorder.figures]
    told = [event.value for event in events.Scalars("gradwatch/norm/1.weight")]
    assert told == pytest.approx(measured)
