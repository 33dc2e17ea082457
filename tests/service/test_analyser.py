"""The analyser as a thread behind the real store: it follows commits, waits, resumes, says silent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import poll
from tests.service.analysed import MANIFEST, healthy_rows, troubled_rows

from gradwatch_service.analysis.analyser import Analyser, AnalysisSnapshot
from gradwatch_service.analysis.run_analysis import RunAnalysis
from gradwatch_service.rows import StepRows
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Store
from gradwatch_service.store.delivering import deliver
from gradwatch_service.store.opening import open_store

PATIENCE = 20.0


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.newest: dict[str, AnalysisSnapshot] = {}
        self.threads: set[str] = set()

    def analysed(self, run: str, snapshot: AnalysisSnapshot) -> None:
        self.newest[run] = snapshot
        self.threads.add(threading.current_thread().name)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=f"sqlite:///{tmp_path / 'g.db'}", snapshot_steps=32)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings)
    yield opened
    opened.close()


def send(store: Store, rows: StepRows, sequence: int, run: str = "run") -> None:
    """Register the run and store one delivery, durably."""
    manifest = store.register(run, MANIFEST, now=1.0).manifest
    delivery = deliver(run, rows, sequence=sequence, manifest=manifest, received=1.0)
    store.append(delivery).result(PATIENCE)


def started(store: Store, settings: Settings, **options: Any) -> tuple[Analyser, Heard]:
    analyser, heard = Analyser(store, settings, **options), Heard()
    analyser.add_listener(heard)
    analyser.start()
    return analyser, heard


def test_commits_are_followed_and_told_from_one_thread(store: Store, settings: Settings) -> None:
    analyser, heard = started(store, settings)
    rows = troubled_rows(200)
    for sequence in range(4):
        send(store, rows.cut(50 * sequence, 50 * sequence + 50), sequence)
    position = analyser.wait("run", PATIENCE)
    assert position == (True, 199)
    assert heard.newest["run"].total == {"exploding": 2, "nonfinite": 1, "vanishing": 1}
    assert heard.newest["run"].recommendation is not None
    assert heard.threads == {"gradwatch-analyser"}
    analyser.stop()
    assert heard.newest["run"].state == "healthy"


def test_a_new_process_goes_on_where_the_last_one_was_killed(
    store: Store, settings: Settings
) -> None:
    rows = troubled_rows(200)
    first, _ = started(store, settings)
    send(store, rows.cut(0, 120), 0)
    first.wait("run", PATIENCE)
    first.stop()
    before = store.documents("run", "incident")
    send(store, rows.cut(120, 200), 1)
    second, heard = started(store, settings)
    poll(lambda: "run" in heard.newest and heard.newest["run"].analysed_step == 199)
    second.stop()
    after = store.documents("run", "incident")
    assert before.keys() < after.keys()
    assert heard.newest["run"].total == {"exploding": 2, "nonfinite": 1, "vanishing": 1}


def test_waiting_ends_unanalysed_while_a_sequence_is_missing(
    store: Store, settings: Settings
) -> None:
    analyser, heard = started(store, settings)
    rows = healthy_rows(100)
    send(store, rows.cut(0, 40), 0)
    send(store, rows.cut(60, 100), 2)
    position = analyser.wait("run", 1.0)
    assert position == (False, 39)
    send(store, rows.cut(40, 60), 1)
    assert analyser.wait("run", PATIENCE) == (True, 99)
    analyser.stop()
    assert heard.newest["run"].open == ()


def test_attempts_are_analysed_each_on_its_own_and_a_rewind_is_no_trouble(
    store: Store, settings: Settings
) -> None:
    analyser, heard = started(store, settings)
    send(store, healthy_rows(200), 0)
    resumed = store.register("run", replace(MANIFEST, session="again"), now=2.0)
    later = replace(healthy_rows(150, seed=9, first=120), attempt=resumed.attempt)
    delivery = deliver("run", later, sequence=0, manifest=resumed.manifest, received=2.0)
    store.append(delivery).result(PATIENCE)
    assert analyser.wait("run", PATIENCE) == (True, 269)
    analyser.stop()
    assert heard.newest["run"].open == ()


def test_a_run_whose_analysis_fails_is_tried_again_after_a_while_and_not_with_every_report(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def failing(analysis: RunAnalysis, now: float) -> None:
        tries.append(analysis.run)
        raise ZeroDivisionError

    clock = Clock()
    with monkeypatch.context() as patched:
        patched.setattr(RunAnalysis, "tick", failing)
        analyser, _ = started(store, settings, clock=clock)
        rows = healthy_rows(200)
        for sequence in range(10):
            send(store, rows.cut(20 * sequence, 20 * sequence + 20), sequence)
            analyser.wait("run", 0.05)
        poll(lambda: tries)
    assert tries == ["run"]
    clock.now += 31.0
    assert analyser.wait("run", PATIENCE) == (True, 199)
    analyser.stop()


def test_a_run_without_reports_becomes_silent_and_comes_back(
    store: Store, settings: Settings
) -> None:
    clock = Clock()
    analyser, heard = started(store, settings, clock=clock)
    rows = healthy_rows(100)
    send(store, rows.cut(0, 50), 0)
    analyser.wait("run", PATIENCE)
    clock.now += settings.silent_seconds + 1
    poll(lambda: heard.newest["run"].state == "silent")
    send(store, rows.cut(50, 100), 1)
    poll(lambda: heard.newest["run"].state == "healthy")
    analyser.stop()


def test_trouble_with_one_run_leaves_the_others_alone(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store, healthy_rows(50), 0, run="broken")
    real = store.streams

    def broken(run: str) -> Any:
        if run == "broken":
            raise RuntimeError("disk on fire")
        return real(run)

    monkeypatch.setattr(store, "streams", broken)
    analyser, heard = started(store, settings)
    send(store, healthy_rows(50), 0, run="fine")
    assert analyser.wait("fine", PATIENCE) == (True, 49)
    assert "broken" not in heard.newest
    analyser.stop()


def test_a_deleted_run_is_forgotten(store: Store, settings: Settings) -> None:
    analyser, heard = started(store, settings)
    send(store, healthy_rows(50), 0)
    analyser.wait("run", PATIENCE)
    store.delete("run")
    poll(lambda: analyser.newest("run") is None)
    analyser.stop()
    assert heard.newest["run"].analysed_step == 49
