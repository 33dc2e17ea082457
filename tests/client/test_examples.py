"""The examples train for real and the service sees it; those of frameworks run beside their tests."""

import multiprocessing
import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import free_port, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 8


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("service")) as served:
        yield served.base_url


def steps_of(url: str, run: str) -> int:
    summary: dict[str, Any] = httpx.get(f"{url}/api/v1/runs/{run}").json()
    steps: int = summary["steps"]
    return steps


@pytest.mark.parametrize("example", ["plain_loop", "gan"])
def test_a_loop_of_its_own_is_watched(
    example: str, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings(service, example, tmp_path).items():
        monkeypatch.setenv(name, value)
    runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    assert steps_of(service, example) >= STEPS


def test_data_parallel_ranks_are_one_run(service: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "gradwatch"])
    environment = {
        **settings(service, "ddp", tmp_path),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    ranks = [
        context.Process(target=run_rank, args=({**environment, "RANK": str(rank)},))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert steps_of(service, "ddp") == STEPS


def run_rank(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    runpy.run_path(str(EXAMPLES / "ddp.py"), run_name="__main__")


def settings(url: str, run: str, folder: Path) -> dict[str, str]:
    return {
        "STEPS": str(STEPS),
        "GRADWATCH_URL": url,
        "GRADWATCH_RUN": run,
        "GRADWATCH_DIR": str(folder),
        "GRADWATCH_FLUSH_TIMEOUT": "20",
    }
