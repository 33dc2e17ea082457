"""With a real service: incidents come back to the loop, replicas that drift apart are noticed."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.client.ranks import run_ranks
from tests.conftest import poll, serving
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch


def test_an_incident_reaches_the_loop_on_the_background_thread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    with serving(tmp_path) as service:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        watch = gradwatch.watch(
            model,
            optimizer,
            nonfinite="zero",
            url=service.base_url,
            run="told",
            spool=tmp_path / "spool",
            on_incident=lambda i: heard.append((threading.current_thread().name, i)),
        )
        for step in range(60):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            if step == 50:
                next(model.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]
            optimizer.step()
        poll(lambda: heard)
        watch.close(timeout=20)
        start, *_, see = capsys.readouterr().out.splitlines()
        # The page's own address of a run, see the links in page/runs.js.
        assert start == f"gradwatch: run told, see {service.base_url}/#/runs/told"
        assert see == f"gradwatch: see: {service.base_url}/#/runs/told"
    thread, incident = heard[0]
    assert thread == "gradwatch"
    assert (incident["kind"], incident["opened_step"], incident["first_tensor"]) == (
        "nonfinite",
        50,
        "0.weight",
    )


def test_layers_that_are_unfrozen_and_added_join_the_run_where_they_join_the_training(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as service:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        watch = gradwatch.watch(
            model,
            optimizer,
            clip={"*weight": gradwatch.clip.value(0.1), "*": gradwatch.clip.norm(1.0)},
            url=service.base_url,
            run="growing",
            spool=tmp_path / "spool",
        )
        for step in range(30):
            if step == 10:
                model[0].requires_grad_(True)
            if step == 20:
                model.append(nn.Linear(4, 1))
                optimizer.add_param_group({"params": model[2].parameters()})
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        watch.close(timeout=20)
        assert watch.health().errors == 0

        def names(step: int) -> list[str]:
            answer = httpx.get(service.api("runs/growing/tensors"), params={"step": step})
            return [item["name"] for item in answer.raise_for_status().json()["items"]]

        first = ["1.weight", "1.bias"]
        unfrozen = [*first, "0.weight", "0.bias"]
        assert names(9) == first
        assert names(10) == unfrozen
        assert names(29) == [*unfrozen, "2.weight", "2.bias"]
        summary = httpx.get(service.api("runs/growing")).json()
        assert (summary["steps"], summary["dropped"]) == (30, {})


class Drifting:
    """A data-parallel job in which rank 1's weights are disturbed between two checks."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def __call__(self, rank: int) -> str:
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        watch = gradwatch.watch(
            model, optimizer, url=self.url, run="drift", mode="online", spool=self.folder
        )
        for step in range(120):
            if (step, rank) == (60, 1):
                with torch.no_grad():
                    next(model.parameters()).add_(1e-3)
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        watch.close(timeout=20)
        return watch.run


def test_replicas_that_drift_apart_are_noticed_though_their_gradients_agree(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        assert run_ranks(Drifting(service.base_url, tmp_path), 2) == ["drift", "drift"]
        notices = service.api("runs/drift/notices")
        (notice,) = poll(
            lambda: [n for n in httpx.get(notices).json()["items"] if n["kind"] == "replicas_apart"]
        )
        assert notice["opened_step"] == 100
        assert 1 in notice["ranks"]
        summary = httpx.get(service.api("runs/drift")).json()
        assert (summary["steps"], summary["attempt"]) == (120, 0)
        assert httpx.get(service.api("runs/drift/incidents")).json()["items"] == []
