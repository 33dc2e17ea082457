"""Brings deliveries to the service: registers first, judges each answer, keeps its distance."""

import json
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from gradwatch.identity import Identity
from gradwatch.reporting.backoff import Backoff
from gradwatch.reporting.delivery import Delivery, readdressed
from gradwatch.reporting.transport import Response, Transport, TransportError
from gradwatch.reporting.verdict import Action, Verdict, judge_registration, judge_report
from gradwatch_wire import CONTENT_TYPE, Manifest

__all__ = ["Sender"]

_JSON = "application/json"


class Sender:
    """One rank's way to the service.

    Args:
        connect: Makes what asks the service; called with the first request.
        identity: Whose deliveries these are.
        backoff: How long to leave a failing service alone.
        chance: Gives a number in [0, 1).

    Attributes:
        stopped: Why nothing is sent any more; None while it is.
        last_error: What went wrong last; None when nothing ever did.
        reached: Whether the last request was answered well.
        asking: Entered around every request.
    """

    def __init__(
        self,
        connect: Callable[[], Transport],
        identity: Identity,
        backoff: Backoff,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._connect = connect
        self._transport: Transport | None = None
        self._identity = identity
        self._backoff = backoff
        self._chance = chance
        self._manifests: dict[str, Manifest] = {}
        self._registered: set[str] = set()
        self._refused: set[str] = set()
        self._attempt: int | None = None
        self._first_sequence = 0
        self._not_before = 0.0
        self.stopped: str | None = None
        self.last_error: str | None = None
        self.reached = False
        self.asking: Callable[[], AbstractContextManager[None]] = nullcontext

    def introduce(self, manifest: Manifest) -> None:
        """Take a manifest that deliveries will name; it is registered before the first of them."""
        self._manifests[manifest.hash] = manifest

    def ready_in(self) -> float:
        """Seconds until the next request may be made; infinite when none ever may."""
        if self.stopped is not None:
            return float("inf")
        return max(0.0, self._not_before - time.monotonic())

    def hurry(self) -> None:
        """Make the next request at once, whatever the backoff says."""
        self._not_before = 0.0

    @property
    def announced(self) -> bool:
        """Whether everything introduced is registered, as far as it can be."""
        return self._registered | self._refused >= self._manifests.keys()

    @property
    def state(self) -> str:
        """``starting``, ``online``, ``away`` or ``refused``."""
        if self.stopped is not None:
            return "refused"
        if self.reached:
            return "online"
        return "starting" if self.last_error is None else "away"

    def announce(self) -> None:
        """Register everything introduced. Never raises."""
        for manifest_hash in self._manifests.keys() - self._registered - self._refused:
            if self._note(self._register(manifest_hash)).action is not Action.DONE:
                return

    def deliver(self, delivery: Delivery) -> Verdict:
        """Send one delivery; what became of it. Never raises."""
        verdict = Verdict(Action.DROP, "unknown manifest", reason="rejected")
        for _ in range(2):
            unknown_run = verdict.action is Action.REGISTER and verdict.status == 404
            if delivery.manifest not in self._registered:
                verdict = self._register(delivery.manifest)
                if verdict.action is not Action.DONE:
                    return self._note(verdict)
                if unknown_run and verdict.answer.get("created") is True:
                    # The service has lost what it knew of this run: its deliveries begin anew.
                    self._first_sequence = delivery.sequence
            verdict = self._send(delivery)
            if verdict.action is not Action.REGISTER:
                return self._note(verdict)
            self._registered.clear()
        return self._note(Verdict(Action.DROP, verdict.why, reason="rejected"))

    def finish(self, status: str, *, until: float) -> bool:
        """Say that the run is over, before ``until``; whether the service took note."""
        self.limit(until)
        if self.stopped is None:
            self.announce()
        if self.stopped is not None or not self.reached:
            return False
        try:
            body = json.dumps({"status": status}).encode()
            answer = self._request("POST", "/finish", body, _JSON)
        except TransportError as error:
            self.last_error = str(error)
            return False
        return answer.status in {200, 202}

    @property
    def attempt(self) -> int | None:
        """Which start of the job the service took this for; None before it answered."""
        return self._attempt

    def fetch(self, rest: str) -> bytes:
        """What the service answers to a question about the run; empty when it does not."""
        try:
            answer = self._request("GET", rest, b"", _JSON)
        except TransportError as error:
            self.last_error = str(error)
            return b""
        return answer.body if answer.status == 200 else b""

    def limit(self, at: float) -> None:
        """From now on let no request last beyond this moment, in monotonic seconds."""
        if self._transport is not None:
            self._transport.limit(at)

    def abort(self) -> None:
        """End the request under way. Callable from any thread."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _request(self, method: str, rest: str, body: bytes, content_type: str) -> Response:
        if self._transport is None:
            self._transport = self._connected()
        path = f"/runs/{self._identity.run}{rest}"
        with self.asking():
            return self._transport.request(method, path, body, content_type)

    def _connected(self) -> Transport:
        try:
            return self._connect()
        except ImportError as error:
            self.stopped = f"{error}; pip install 'gradwatch[client]'"
            raise TransportError(self.stopped) from error
        except (OSError, ValueError) as error:  # a CA file that is not there, a proxy that is none
            raise TransportError(str(error)) from error

    def _send(self, delivery: Delivery) -> Verdict:
        sequence = delivery.sequence - self._first_sequence
        body = readdressed(delivery, self._attempt or 0, sequence)
        try:
            answer = self._request("POST", "/reports", body, CONTENT_TYPE)
        except TransportError as error:
            return Verdict(Action.RETRY, str(error))
        now = time.time()
        return judge_report(answer.status, answer.headers, answer.body, sequence=sequence, now=now)

    def _register(self, manifest_hash: str) -> Verdict:
        manifest = self._manifests.get(manifest_hash)
        if manifest is None or manifest_hash in self._refused:
            return Verdict(Action.DROP, f"manifest {manifest_hash} was refused", reason="rejected")
        if manifest.extends is not None and manifest.extends not in self._registered:
            verdict = self._register(manifest.extends)
            if verdict.action is not Action.DONE:
                return verdict
        body = json.dumps(manifest.to_json(), separators=(",", ":")).encode()
        try:
            answer = self._request("PUT", "", body, _JSON)
        except TransportError as error:
            return Verdict(Action.RETRY, str(error))
        verdict = judge_registration(answer.status, answer.headers, answer.body, now=time.time())
        if verdict.action is Action.DONE:
            self._attempt = verdict.answer["attempt"]
            self._registered.add(manifest_hash)
        elif verdict.action is Action.DROP:
            self._refused.add(manifest_hash)
        return verdict

    def _note(self, verdict: Verdict) -> Verdict:
        """Keep count of failures, which decides when the next request may be made."""
        self.reached = verdict.action in {Action.DONE, Action.DROP}
        if self.reached:
            self._backoff = self._backoff.succeeded()
            self._not_before = 0.0
        if verdict.why:
            self.last_error = verdict.why
        if verdict.action is Action.STOP:
            self.stopped = verdict.why
        if verdict.action is Action.RETRY:
            self._backoff, wait = self._backoff.failed(self._chance, verdict.retry_after)
            self._not_before = time.monotonic() + wait
        return verdict
