"""Promise 3 with the real service: acknowledged is durable, counted once, the same by every way."""

import math
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.client.reporting import samples
from tests.client.reporting.samples import IDENTITY, manifest, sample
from tests.conftest import Served, free_port, poll, serve_process, serving

from gradwatch.reporting.backoff import Backoff
from gradwatch.reporting.outbox import MAX_SAMPLES
from gradwatch.reporting.replay import find_spools
from gradwatch.reporting.reporter import Reporter
from gradwatch.statistics import STATISTICS
from gradwatch_cli.commands import sync
from gradwatch_cli.errors import CommandError

QUICK = Backoff(first=0.01, probe=(0.05, 0.1))
STEPS = 60
METRICS = ("global_norm", "max_abs", "loss", "nonfinite_count", "clip_fraction")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("service")) as made:
        yield made


def report(run: str, url: str, directory: Path, batches: list[int], mode: str = "online") -> None:
    """Report STEPS steps, delivered in batches of the given sizes."""
    identity = replace(IDENTITY, run=run, session=f"{run}-1")
    reporter = Reporter(samples.settings(url, directory, mode=mode), identity, backoff=QUICK)
    reporter.register("default", replace(manifest(), session=identity.session), STATISTICS)
    step = 0
    for size in [*batches, STEPS]:
        for _ in range(min(size, STEPS - step)):
            # A bounded wave with one spike and one non-finite step: something for every analysis.
            value = (1.0 + 0.3 * math.sin(step)) * (200.0 if step == 45 else 1.0)
            reporter.put(sample(step, value=value, nonfinite=step == 50, scalars={"loss": value}))
            step += 1
        assert reporter.flush(20.0)
    assert reporter.close("completed", 20.0) is (mode == "online")


def stored(served: Served, run: str) -> dict[str, Any]:
    """Everything a reader can ask about a run, without its name and its clock."""
    http = served.http
    base = f"/api/v1/runs/{run}"
    state: dict[str, Any] = {}
    for metric in METRICS:
        query = {"metric": metric, "points": STEPS}
        state[metric] = http.get(f"{base}/series", params=query).json()
    state["tensors"] = http.get(f"{base}/tensors", params={"step": STEPS - 1}).json()
    state["incidents"] = http.get(f"{base}/incidents").json()
    state["recommendation"] = http.get(f"{base}/recommendation").json()
    summary = http.get(base).json()
    state["summary"] = {
        key: summary[key] for key in ("state", "attempt", "steps", "last_step", "dropped")
    }
    return _anonymous(state)


def _anonymous(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: _anonymous(v) for k, v in value.items() if k not in {"run", "id"} and "_at" not in k
        }
    return [_anonymous(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", [1, 2])
def test_offline_and_sync_give_the_state_that_an_online_run_gives(
    seed: int, served: Served, tmp_path: Path
) -> None:
    """Whatever the batching: each seed cuts the offline run into other deliveries."""
    batches = [random.Random(seed).randint(1, 20) for _ in range(6)]
    online, offline = f"online-{seed}", f"offline-{seed}"
    report(online, served.base_url, tmp_path, [7, 20])
    report(offline, served.base_url, tmp_path, batches, mode="offline")
    result = subprocess.run(
        [sys.executable, "-m", "gradwatch_cli", "sync", str(tmp_path), "--url", served.base_url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    first = stored(served, online)
    assert first["summary"]["steps"] == STEPS
    assert first["incidents"]["items"]
    assert stored(served, offline) == first


def test_a_service_killed_and_restarted_has_every_step_once(tmp_path: Path) -> None:
    port, store = free_port(), tmp_path / "store.db"
    identity = replace(IDENTITY, run="killed")
    reporter = Reporter(
        samples.settings(f"http://127.0.0.1:{port}", tmp_path / "spool"), identity, backoff=QUICK
    )
    with serve_process(store, port=port) as process:
        reporter.register("default", manifest(), STATISTICS)
        for step in range(20):
            reporter.put(sample(step))
        assert reporter.flush(20.0)
        for step in range(20, 40):
            reporter.put(sample(step, nonfinite=step % 4 == 0))
        process.kill()
    for step in range(40, 60):
        reporter.put(sample(step, nonfinite=step % 4 == 0))
    assert not reporter.flush(0.2)
    assert reporter.health().spooled_deliveries > 0
    with serve_process(store, port=port) as process:
        assert reporter.flush(30.0)
        assert reporter.close("completed", 10.0)
        query = {"metric": "global_norm", "points": STEPS}
        series = process.http.get("/api/v1/runs/killed/series", params=query).json()
        finite = [a + b for a, b in zip(series["count"], series["nonfinite_count"], strict=True)]
        assert series["start_step"] == list(range(STEPS))
        assert finite == [1] * STEPS
        assert process.http.get("/api/v1/runs/killed").json()["steps"] == STEPS
    assert list((tmp_path / "spool").rglob("*.gw")) == []


def test_sync_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match="is no directory") as missing:
        sync.command(directory=tmp_path / "missing")
    with pytest.raises(CommandError, match="is no address") as address:
        sync.command(directory=tmp_path, url="ftp://x")
    assert (missing.value.code, address.value.code) == (2, 2)
    sync.command(directory=tmp_path)
    assert "nothing is waiting" in capsys.readouterr().out


def test_sync_without_a_service_leaves_everything_and_exits_1(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    report("left", url, tmp_path, [30], mode="offline")
    (spool,) = find_spools(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.gw")}
    result = subprocess.run(
        [sys.executable, "-m", "gradwatch_cli", "sync", str(tmp_path), "--url", url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert f"{spool.deliveries} deliveries are left" in " ".join(result.stderr.split())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.gw")} == before


def test_what_a_client_dropped_is_shown_in_the_summary_a_notice_and_a_metric(
    served: Served, tmp_path: Path
) -> None:
    gate, entered = threading.Event(), threading.Event()
    identity = replace(IDENTITY, run="dropping", session="dropping-1")
    reporter = Reporter(samples.settings(served.base_url, tmp_path), identity, backoff=QUICK)
    reporter.on_read(lambda *_: (entered.set(), gate.wait(10.0)))  # type: ignore[arg-type] # its value is ignored
    reporter.register("default", replace(manifest(), session=identity.session), STATISTICS)
    reporter.put(sample(0))
    assert entered.wait(10.0)
    for step in range(1, MAX_SAMPLES + 8):
        reporter.put(sample(step))
    gate.set()
    assert reporter.close("completed", 20.0)
    summary = served.http.get("/api/v1/runs/dropping").json()
    assert summary["dropped"] == {"queue_full": 7}
    assert summary["steps"] == MAX_SAMPLES + 1

    def kinds() -> set[str]:
        notices = served.http.get("/api/v1/runs/dropping/notices").json()["items"]
        return {notice["kind"] for notice in notices}

    poll(lambda: "reports_dropped" in kinds())
    name = "gradwatch_client_dropped_reports_total"
    line = poll(
        lambda: next(
            (
                line
                for line in served.http.get("/metrics").text.splitlines()
                if line.startswith(name) and 'run="dropping"' in line and "queue_full" in line
            ),
            None,
        )
    )
    assert float(line.split()[-1]) == 7.0
