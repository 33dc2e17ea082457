"""HTTP to the service: one connection, hard limits on time and size, nothing followed blindly."""

import gzip
import ipaddress
import os
import ssl
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from gradwatch.reporting.deadline import Deadline, DeadlineSocket
from gradwatch.version import __version__

__all__ = ["HttpTransport", "Response", "Transport", "TransportError", "is_loopback", "may_carry"]

CONNECT_SECONDS = 2.0
MAX_ANSWER_BYTES = 64 * 1024
_WORTH_COMPRESSING_BYTES = 1024


class TransportError(Exception):
    """The service could not be asked, or did not answer in time or in bounds."""


@dataclass(frozen=True, slots=True)
class Response:
    """What the service answered.

    Attributes:
        status: HTTP status.
        headers: Case-insensitive.
        body: At most 64 KiB.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Asks the service. Used from one thread; ``limit`` and ``abort`` may come from others."""

    def request(self, method: str, path: str, body: bytes, content_type: str) -> Response:
        """One request below ``/api/v1``.

        Raises:
            TransportError: No answer in time and in bounds.
        """
        ...

    def limit(self, at: float) -> None:
        """From now on let no request last beyond this moment, in monotonic seconds."""
        ...

    def abort(self) -> None:
        """End the request under way."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def is_loopback(url: str) -> bool:
    """Whether the address names this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def may_carry(url: str, *, insecure: bool) -> bool:
    """Whether a token may travel to the address: encrypted, to this machine, or by permission."""
    return insecure or urlsplit(url).scheme == "https" or is_loopback(url)


class HttpTransport:
    """Requests over one kept-alive connection of urllib3.

    Nothing is retried and no redirect is followed here: who calls decides. Proxies and CA files are
    those of the usual variables (``HTTPS_PROXY``, ``NO_PROXY``, ``SSL_CERT_FILE``,
    ``REQUESTS_CA_BUNDLE``); this machine is never asked through a proxy.

    Args:
        url: Address of the service.
        token: Sent as bearer token where it may travel, see :func:`may_carry`.
        timeout: Seconds that one request may take from its first byte to its last.
        insecure: Whether the token may travel in the clear.

    Raises:
        ImportError: urllib3 is not installed.
    """

    def __init__(
        self, url: str, *, token: str | None, timeout: float, insecure: bool = False
    ) -> None:
        self._base = f"{url.rstrip('/')}/api/v1"
        self._timeout = timeout
        self._deadline = Deadline()
        self._local = is_loopback(url)
        self._headers = {"User-Agent": f"gradwatch/{__version__}", "Accept": "application/json"}
        if token is not None and may_carry(url, insecure=insecure):
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = _pool(url, self._deadline, direct=self._local)

    def request(self, method: str, path: str, body: bytes, content_type: str) -> Response:
        """See :class:`Transport`."""
        from urllib3 import Timeout  # noqa: PLC0415 - loaded already; kept out of `import gradwatch`
        from urllib3.exceptions import HTTPError  # noqa: PLC0415 - the same

        headers = {**self._headers, "Content-Type": content_type}
        if not self._local and len(body) >= _WORTH_COMPRESSING_BYTES:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, 1, mtime=0)
        self._deadline.start(self._timeout)
        try:
            patience = min(CONNECT_SECONDS, self._deadline.remaining())
            answer = self._pool.request(
                method,
                self._base + path,
                body=body,
                headers=headers,
                timeout=Timeout(connect=patience, read=self._timeout),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            return self._read(answer)
        except (HTTPError, OSError, ValueError, AttributeError) as error:
            # ValueError and AttributeError: what http.client makes of a socket closed under it.
            self._pool.clear()
            raise TransportError(_told(error)) from error

    def _read(self, answer: Any) -> Response:
        body: bytes = answer.read(MAX_ANSWER_BYTES + 1)
        if len(body) > MAX_ANSWER_BYTES:
            answer.close()
            raise ValueError(f"answered with more than {MAX_ANSWER_BYTES} bytes")
        answer.release_conn()
        return Response(answer.status, answer.headers, body)

    def limit(self, at: float) -> None:
        """See :class:`Transport`."""
        self._deadline.limit(at)

    def abort(self) -> None:
        """See :class:`Transport`."""
        self._deadline.abort()

    def close(self) -> None:
        """See :class:`Transport`."""
        with suppress(OSError):
            self._pool.clear()


def _pool(url: str, deadline: Deadline, *, direct: bool) -> Any:
    import urllib3  # noqa: PLC0415 - only in the background thread, where its cost is not felt

    proxy = None if direct else _proxy(url)
    options: dict[str, Any] = {"num_pools": 1, "maxsize": 1, "ssl_context": _tls(url)}
    if proxy is None:
        pool = urllib3.PoolManager(**options)
    else:
        plain, credentials = _without_credentials(proxy)
        pool = urllib3.ProxyManager(plain, proxy_headers=credentials, **options)
    pool.pool_classes_by_scheme = _pool_classes(deadline)
    return pool


def _pool_classes(deadline: Deadline) -> dict[str, Any]:
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool  # noqa: PLC0415 - see _pool
    from urllib3.connection import HTTPConnection, HTTPSConnection  # noqa: PLC0415 - see _pool

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = DeadlineSocket(self.sock, deadline)

    class Encrypted(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = DeadlineSocket(self.sock, deadline)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

    return {"http": PlainPool, "https": EncryptedPool}


def _tls(url: str) -> ssl.SSLContext | None:
    if urlsplit(url).scheme != "https":
        return None
    # OpenSSL reads SSL_CERT_FILE and SSL_CERT_DIR by itself; the other two are what people also set.
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    context = ssl.create_default_context()
    if bundle:
        context.load_verify_locations(
            **({"capath": bundle} if os.path.isdir(bundle) else {"cafile": bundle})  # noqa: PTH112 - a text from the environment
        )
    return context


def _proxy(url: str) -> str | None:
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _without_credentials(proxy: str) -> tuple[str, dict[str, str]]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return proxy, {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    host = parts.netloc.rpartition("@")[2]
    plain = urlunsplit((parts.scheme, host, parts.path, "", ""))
    return plain, {"Proxy-Authorization": "Basic " + b64encode(pair.encode()).decode()}


def _told(error: Exception) -> str:
    """One line: the innermost cause, which says more than the layers around it."""
    cause: BaseException = error
    while cause.__cause__ is not None or isinstance(cause.__context__, OSError):
        cause = cause.__cause__ or cause.__context__ or cause
    text = str(cause) or type(cause).__name__
    return " ".join(text.split())[:200]
