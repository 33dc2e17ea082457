"""Drives a headless Chromium over its debugging pipe: no driver, no library, no port."""

import json
import os
import select
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--window-size=1280,1400",
]


class Browser:
    """One page of a browser. Every method waits until the browser has answered."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        done = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, condition: str, *, seconds: float = 20.0) -> None:
        """Ask until a JavaScript expression is true; show the page when it never is."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            text = "" if time.monotonic() < deadline else self.run("document.body.innerText")
            assert time.monotonic() < deadline, f"never: {condition}\n{text}"
            time.sleep(0.05)

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drag over an element with the mouse, from one share of its width to another."""
        self.run(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
        box = self.run(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
        y = box["top"] + box["height"] / 2
        places = [box["left"] + share * box["width"] for share in (start, (start + end) / 2, end)]
        kinds = ["mousePressed", "mouseMoved", "mouseReleased"]
        for kind, x in zip(kinds, places, strict=True):
            mouse = {"x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, **mouse)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:  # everything else is an event nobody asked for
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            assert ready, "the browser did not answer"
            self._pending += os.read(self._answers, 1 << 20)
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile; ended afterwards."""
    child_in, commands = os.pipe()
    answers, child_out = os.pipe()
    line = shlex.join(["chromium", *FLAGS, f"--user-data-dir={profile}"])
    # Chromium reads commands on descriptor 3 and answers on 4.
    with subprocess.Popen(
        ["bash", "-c", f"exec {line} 3<&{child_in} 4>&{child_out} 2>/dev/null"],
        pass_fds=[child_in, child_out],
    ) as process:
        os.close(child_in)
        os.close(child_out)
        try:
            yield Browser(commands, answers)
        finally:
            process.terminate()
            process.wait(30)
            os.close(commands)
            os.close(answers)
