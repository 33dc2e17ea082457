"""What a person sees: a start line, five closing lines, and the tensor where NaN came in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradwatch


def train(watch: gradwatch.Watch, model: nn.Module, optimizer: Any, poison: int | None) -> None:
    for step in range(20):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        if step == poison:
            with torch.no_grad():
                for parameter in model[:2].parameters():  # type: ignore[index]  # a Sequential
                    parameter.grad.fill_(float("nan"))
        optimizer.step()
        watch.log(loss=1.0)


def closed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poison: int | None = None, **options: Any
) -> list[str]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    watch = gradwatch.watch(
        model,
        optimizer,
        nonfinite="zero",
        mode="offline",
        run="lines",
        spool=tmp_path / "spool",
        **options,
    )
    train(watch, model, optimizer, poison)
    watch.close()
    return capsys.readouterr().out.splitlines()


def test_one_line_at_the_start_and_five_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, *ending = closed(tmp_path, capsys, clip=gradwatch.clip.value(1e-3))
    assert all(line.startswith("gradwatch: ") for line in (start, *ending))
    assert "lines" in start
    assert str(tmp_path / "spool") in start
    steps, largest, clipped, dropped, see = (line.removeprefix("gradwatch: ") for line in ending)
    assert steps == "steps: 20"
    assert largest.startswith("largest norm: ")
    assert "at step 0" in largest
    assert clipped.startswith("clipped: ")
    assert clipped.endswith("of all elements")
    assert dropped == "dropped: nothing"
    assert f"gradwatch sync {tmp_path / 'spool'}" in see


def test_the_closing_lines_name_the_tensor_that_the_backward_pass_met_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, steps, *_ = closed(tmp_path, capsys, poison=7)
    assert steps == (
        "gradwatch: steps: 20 (1 with NaN or infinite gradients, the first at step 7 in 1.bias)"
    )


def test_quiet_is_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    assert closed(tmp_path, capsys) == []


def test_the_newest_statistics_can_be_read_without_waiting(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    watch = gradwatch.watch(model, optimizer, mode="offline", spool=tmp_path)
    assert watch.last() is None
    model(torch.ones(2, 4)).sum().backward()
    model[1].bias.grad[0] = float("inf")
    optimizer.step()
    assert watch.flush(10)
    last = watch.last()
    assert last is not None
    assert (last.step, last.first_nonfinite) == (0, "1.bias")
    row = last.to_dict()["0.weight"]
    grad = model[0].weight.grad
    assert grad is not None
    assert row["norm"] == pytest.approx(float(grad.norm()), rel=1e-6)
    watch.close()
