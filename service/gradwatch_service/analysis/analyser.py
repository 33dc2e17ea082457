"""The analyser: one thread that follows the commits and keeps every run's diagnosis current."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from gradwatch_service.analysis.incidents import Incident
from gradwatch_service.analysis.run_analysis import RunAnalysis
from gradwatch_service.analysis.run_state import run_state
from gradwatch_service.rows import StepRows
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Commit, DeletedRunError, Store, UnknownRunError

__all__ = ["Analyser", "AnalysisListener", "AnalysisSnapshot", "Position"]

_log = logging.getLogger(__name__)

RUNS_IN_MEMORY: Final = 1024
RETRY_SECONDS: Final = 30.0  # after an error of our own: try again, but do not spin
MAIL_BYTES: Final = 64 * 2**20  # of commits that wait for their tick
TICK_SECONDS: Final = 0.1  # commits that come closer together are taken in at once
LONGEST_PAUSE: Final = 0.5  # under load they are gathered for half as long as the last round took


class Position(NamedTuple):
    """How far a run is analysed."""

    analysed: bool  # everything that was stored has been taken in, and nothing is missing
    analysed_step: int | None


@dataclass(frozen=True, slots=True)
class AnalysisSnapshot:
    """What the newest tick left of a run, for the live view.

    Attributes:
        state: Word for how the run is doing.
        analysed_step: Newest step taken in, of the newest attempt.
        active: Open incidents that are more than info, by kind.
        total: Ids ever given, by kind; never falls.
        open: Open incidents and notices.
        changed: What this tick changed.
        recommendation: Newest recommendation, or None before the first step.
    """

    state: str
    analysed_step: int | None
    active: Mapping[str, int]
    total: Mapping[str, int]
    open: tuple[Incident, ...]
    changed: tuple[Incident, ...]
    recommendation: Mapping[str, Any] | None


class AnalysisListener(Protocol):
    """Hears of every change; called from the analyser's thread, must be quick and not raise."""

    def analysed(self, run: str, snapshot: AnalysisSnapshot) -> None:
        """Take the newest state of a run."""


@dataclass(slots=True)
class _Mail:
    """What commits said of a run since its last tick."""

    rows: list[StepRows]
    nbytes: int = 0
    generation: int = 0


class Analyser:
    """Follows the store's commits and advances every run's analysis in step order.

    ``start`` takes up every unfinished run; ``stop`` ends after the tick under way. All public
    methods may be called from any thread.

    Args:
        store: Where steps are read and documents are kept.
        settings: ``gap_seconds``, ``snapshot_steps``, ``silent_seconds``.
        clock: Seconds that never go back; tests give their own.
    """

    def __init__(
        self, store: Store, settings: Settings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._changed = threading.Condition()
        self._mail: dict[str, _Mail] = {}
        self._mail_bytes = 0
        self._due: dict[str, float] = {}
        self._paused: dict[str, float] = {}  # runs whose analysis failed, and until when
        self._noted: dict[str, int] = {}  # run to generation of its newest commit
        self._done: dict[str, int] = {}  # run to generation fully taken in
        self._heard: dict[str, float] = {}  # run to clock reading of its newest report
        self._runs: OrderedDict[str, RunAnalysis] = OrderedDict()
        self._newest: dict[str, AnalysisSnapshot] = {}
        self._listeners: list[AnalysisListener] = []
        self._observe: Callable[[float], None] | None = None
        self._stopping = False
        self._awaited = 0  # how many wait for the analysis
        self._thread: threading.Thread | None = None
        store.on_commit(self._committed)

    def add_listener(self, listener: AnalysisListener) -> None:
        """Tell ``listener`` of every later change."""
        self._listeners.append(listener)

    def time_ticks(self, observe: Callable[[float], None]) -> None:
        """Give ``observe`` the seconds that each tick took."""
        self._observe = observe

    def start(self) -> None:
        """Start the thread and take up what an earlier process left."""
        self._thread = threading.Thread(target=self._work, name="gradwatch-analyser", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what was analysed is stored. Safe to repeat."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def wait(self, run: str, timeout: float) -> Position:
        """Wait until everything stored so far is analysed, at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            target = self._noted.get(run, 0)
            self._awaited += 1
            self._changed.notify_all()
            while self._done.get(run, -1) < target and not self._stopping:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._awaited -= 1
            analysed = self._done.get(run, -1) >= target
            newest = self._newest.get(run)
        return Position(analysed, newest.analysed_step if newest else None)

    def newest(self, run: str) -> AnalysisSnapshot | None:
        """Return what the newest tick left of a run, or None before its first."""
        return self._newest.get(run)

    def recommendation(self, run: str) -> Mapping[str, Any] | None:
        """Return the newest recommendation that is known; never computes and never reads."""
        newest = self._newest.get(run)
        return newest.recommendation if newest else None

    def recommender_state(self, run: str) -> tuple[Any, Any, int] | None:
        """State and context of the run's recommendation, and the step it stands at."""
        analysis = self._runs.get(run)
        newest = analysis.newest if analysis else None
        if newest is None or newest.state.position < 0:
            return None
        state = newest.state  # immutable: another thread may go on with the next one
        return state.recommender, state.context, state.position

    def open_incidents(self, run: str) -> list[dict[str, Any]]:
        """Open incidents of a run as JSON values."""
        newest = self._newest.get(run)
        return [i.to_json() for i in newest.open if not i.is_notice] if newest else []

    def _committed(self, commits: Sequence[Commit]) -> None:
        now = self._clock()
        with self._changed:
            for commit in commits:
                if commit.kind == "edited":
                    continue
                mail = self._mail.setdefault(commit.run, _Mail([]))
                generation = self._noted.get(commit.run, 0) + 1
                self._noted[commit.run] = mail.generation = generation
                if commit.rows is not None and len(commit.rows):
                    self._heard[commit.run] = now
                    if not commit.partial:  # a shard's part is no step yet
                        self._post(mail, commit.rows)
            self._changed.notify_all()

    def _post(self, mail: _Mail, rows: StepRows) -> None:
        nbytes = rows.nbytes
        if self._mail_bytes + nbytes > MAIL_BYTES:
            mail.rows.append(rows.bare())  # its numbers are read from the store, in their turn
            return
        mail.rows.append(rows)
        mail.nbytes += nbytes
        self._mail_bytes += nbytes

    def _work(self) -> None:
        self._take_up()
        while True:
            with self._changed:
                while not self._stopping and not (ready := self._ready()):
                    self._changed.wait(self._patience())
                if self._stopping:
                    return
            begun = time.monotonic()
            for run in ready:
                with self._changed:  # not sooner: what comes by now is taken in as well
                    letter = self._mail.pop(run, None)
                self._serve(run, letter)
                with self._changed:
                    self._mail_bytes -= 0 if letter is None else letter.nbytes
                del letter
            self._pause(time.monotonic() - begun)

    def _pause(self, worked: float) -> None:
        end = time.monotonic() + min(LONGEST_PAUSE, max(TICK_SECONDS, worked / 2))
        with self._changed:
            while not self._stopping and not self._awaited:
                left = end - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _ready(self) -> list[str]:
        now = self._clock()
        due = [run for run, at in self._due.items() if at <= now]
        posted = [run for run in self._mail if self._paused.get(run, now) <= now]
        return list(dict.fromkeys([*posted, *due]))

    def _patience(self) -> float:
        soonest = min(self._due.values(), default=self._clock() + 60.0)
        return min(1.0, max(0.0, soonest - self._clock()))

    def _take_up(self) -> None:
        """Mark every stored run as having something to look at."""
        cursor: str | None = None
        while not self._stopping:
            page = self._store.runs(limit=500, cursor=cursor)
            with self._changed:
                for record in page.items:
                    self._mail.setdefault(record.run, _Mail([]))
            cursor = page.next_cursor
            if cursor is None:
                return

    def _serve(self, run: str, mail: _Mail | None) -> None:
        started = time.perf_counter()
        try:
            self._tick(run, mail)
        except (UnknownRunError, DeletedRunError):
            self._forget(run)
        except Exception:  # noqa: BLE001 - one run's trouble must not end the analysis of all others
            _log.exception("analysis of run %r failed; trying again in %g s", run, RETRY_SECONDS)
            self._runs.pop(run, None)  # from the last snapshot: its memory may be half changed
            self._due[run] = self._paused[run] = self._clock() + RETRY_SECONDS
        else:
            self._paused.pop(run, None)
        if self._observe is not None:
            self._observe(time.perf_counter() - started)

    def _forget(self, run: str) -> None:
        with self._changed:
            letter = self._mail.pop(run, None)
            self._mail_bytes -= 0 if letter is None else letter.nbytes
            for known in (
                self._due,
                self._paused,
                self._newest,
                self._heard,
                self._noted,
                self._done,
            ):
                known.pop(run, None)
        self._runs.pop(run, None)

    def _tick(self, run: str, mail: _Mail | None) -> None:
        now = self._clock()
        analysis = self._open(run)
        for rows in mail.rows if mail else ():
            analysis.note(rows)
        changed, again = analysis.tick(now)
        analysis.save()
        again = self._tell(run, analysis, changed, now, again)
        with self._changed:
            if again is None:
                self._due.pop(run, None)
            else:
                self._due[run] = again
            if analysis.complete and run not in self._mail:
                self._done[run] = self._noted.get(run, 0)
            self._changed.notify_all()

    def _open(self, run: str) -> RunAnalysis:
        analysis = self._runs.get(run)
        if analysis is None:
            self._store.run(run)  # raises for a run that was deleted in the meantime
            analysis = RunAnalysis(
                run,
                self._store,
                gap_seconds=self._settings.gap_seconds,
                snapshot_steps=self._settings.snapshot_steps,
            )
            self._runs[run] = analysis
        self._runs.move_to_end(run)
        if len(self._runs) > RUNS_IN_MEMORY:
            self._runs.popitem(last=False)
        return analysis

    def _tell(
        self,
        run: str,
        analysis: RunAnalysis,
        changed: list[Incident],
        now: float,
        again: float | None,
    ) -> float | None:
        """Publish the state; returns when to look again, for silence as well."""
        record = analysis.record or self._store.run(run)
        newest = analysis.newest
        active = dict(analysis.log.active())
        quiet = now - self._heard.setdefault(run, now)
        state = run_state(
            status=record.status,
            active=active,
            steps=newest.state.steps if newest else 0,
            quiet_seconds=quiet,
            limit=self._settings.silent_seconds,
        )
        if state != record.state:
            self._store.set_state(run, state)
        snapshot = AnalysisSnapshot(
            state=state,
            analysed_step=newest.state.position if newest and newest.state.position >= 0 else None,
            active=active,
            total=dict(analysis.log.total()),
            open=tuple(i for i in analysis.log.all() if i.status == "open"),
            changed=tuple(changed),
            recommendation=analysis.recommendation(now),
        )
        self._newest[run] = snapshot
        for listener in self._listeners:
            listener.analysed(run, snapshot)
        if record.status is None and state != "silent":
            silent_at = self._heard[run] + self._settings.silent_seconds + 0.001
            return silent_at if again is None else min(again, silent_at)
        return again
