"""The service's REST interface, asked with the standard library alone."""

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Annotated, Any

import typer

from gradwatch_cli.errors import CommandError
from gradwatch_wire import CONTENT_TYPE
from gradwatch_wire.local_token import local_token

__all__ = ["AsJson", "Rest", "Url", "print_json"]

DEFAULT_URL = "http://127.0.0.1:8642"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WRONG_USE = (400, 422)
JSON = "application/json"
MOST_WAITS = 60

Url = Annotated[
    str | None,
    typer.Option("--url", help="Address of the service; else GRADWATCH_URL, else this machine."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]


class Rest:
    """A service at an address. Failures become one clear line and an exit code.

    Args:
        url: Address; None takes ``GRADWATCH_URL``, else the default port of this machine.
        timeout: Seconds to wait for an answer.

    Raises:
        CommandError: The address is none, or the token would travel in the clear.
    """

    def __init__(self, url: str | None = None, *, timeout: float = 30.0) -> None:
        self.url = (url or os.environ.get("GRADWATCH_URL") or DEFAULT_URL).rstrip("/")
        self._timeout = timeout
        self._token = os.environ.get("GRADWATCH_TOKEN") or local_token(self.url)
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise CommandError(f"{self.url!r} is no address such as {DEFAULT_URL}", code=2)
        # This machine is never asked through a proxy.
        local = parts.hostname in LOOPBACK
        proxies = urllib.request.ProxyHandler({} if local else None)
        self._opener = urllib.request.build_opener(proxies)
        exposed = parts.scheme == "http" and not local
        if self._token and exposed and os.environ.get("GRADWATCH_INSECURE") != "1":
            raise CommandError(
                f"the token would travel unencrypted to {parts.hostname}: use https, or allow it "
                "with GRADWATCH_INSECURE=1",
                code=2,
            )

    def get(self, path: str, **query: Any) -> Any:
        """Answer of a GET below ``/api/v1``; parameters that are None are left out."""
        given = {k: v for k, v in query.items() if v is not None}
        suffix = "?" + urllib.parse.urlencode(given) if given else ""
        with self._open(path + suffix) as answer:
            return json.load(answer)

    def post(self, path: str, body: Mapping[str, Any] | list[Any]) -> Any:
        """Answer of a POST below ``/api/v1``."""
        with self._open(path, body) as answer:
            return json.load(answer)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Answer of a PUT below ``/api/v1``."""
        with self._open(path, body, method="PUT") as answer:
            return json.load(answer)

    def fetch(self, path: str, **query: Any) -> bytes:
        """What a GET below ``/api/v1`` answers in the compact form."""
        with self._open(f"{path}?{urllib.parse.urlencode(query)}", kind=CONTENT_TYPE) as answer:
            return answer.read()

    def send(self, path: str, body: bytes) -> Any:
        """Answer of a POST below ``/api/v1`` whose body is in the compact form."""
        with self._open(path, body, kind=CONTENT_TYPE) as answer:
            return json.load(answer)

    def lines(self, path: str) -> Iterator[str]:
        """Lines of a stream below ``/api/v1``, for as long as it lasts."""
        with self._open(path) as answer:
            for line in answer:
                yield line.decode().rstrip("\r\n")

    @contextmanager
    def _open(
        self,
        path: str,
        body: Mapping[str, Any] | list[Any] | bytes | None = None,
        *,
        method: str | None = None,
        kind: str = JSON,
    ) -> Iterator[IO[bytes]]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked above
            f"{self.url}/api/v1{path}",
            data=data,
            headers={"Content-Type": kind, "Accept": kind if data is None else JSON},
            method=method,
        )
        if self._token:
            # Unredirected: a redirect must not carry the token elsewhere.
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with self._patiently(request) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            raise refusal(error) from error
        except (OSError, urllib.error.URLError) as error:
            reason = getattr(error, "reason", error)
            raise CommandError(
                f"no service answers at {self.url} ({reason}); `gradwatch serve` starts one, "
                "--url or GRADWATCH_URL names another"
            ) from error
        except json.JSONDecodeError as error:
            raise CommandError(f"{self.url} answers, but not as a gradwatch service") from error

    def _patiently(self, request: urllib.request.Request) -> Any:
        """Open; a service that is full says when to come again."""
        for _ in range(MOST_WAITS):
            try:
                return self._opener.open(request, timeout=self._timeout)
            except urllib.error.HTTPError as error:
                if error.code != 429:
                    raise
                time.sleep(min(10.0, float(error.headers.get("Retry-After") or 1)))
        return self._opener.open(request, timeout=self._timeout)


def run_path(run: str, rest: str = "") -> str:
    """Path of a run's resource, whatever characters its id was given with."""
    return f"/runs/{urllib.parse.quote(run, safe='')}{rest}"


def refusal(error: urllib.error.HTTPError) -> CommandError:
    """What the service said, as one line."""
    try:
        problem = json.load(error)
        detail = str(problem.get("detail") or problem.get("title"))
    except (ValueError, AttributeError):
        detail = f"the service answered {error.code} {error.reason}"
    if error.code == 401:
        detail += "; set GRADWATCH_TOKEN"
    return CommandError(detail, code=2 if error.code in WRONG_USE else 1)


def print_json(answer: Any) -> None:
    """Print JSON that other programs read."""
    print(json.dumps(answer, indent=2))
