"""One process that serves: socket, uvicorn, and an orderly end."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI, Response

from gradwatch_service.access.gate import is_loopback
from gradwatch_service.app import create_app
from gradwatch_service.exposition.text import CONTENT_TYPE as METRICS_TYPE
from gradwatch_service.settings import Settings
from gradwatch_service.store.opening import open_store

__all__ = ["ServeError", "Server", "address", "bind", "serve"]

KEEP_ALIVE_SECONDS = 75
OPEN_FILES = 65_536
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
KEPT_BYTES, MAPPED_BYTES = 64 * 2**20, 8 * 2**20


class ServeError(RuntimeError):
    """The service cannot be started; the message is one line that says why and what to do."""


class Server(uvicorn.Server):
    """A uvicorn server whose service stops taking reports before its connections are closed."""

    alone = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Set what is there at the start apart, where this process does nothing else."""
        await super().startup(sockets)
        if self.alone:
            # A full collection looks at every object of every import, holding the GIL for 30 ms.
            gc.collect()
            gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End event streams first: uvicorn waits for every open response."""
        app = self.config.app
        if isinstance(app, FastAPI):
            app.state.service.drain()
        await super().shutdown(sockets)


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until a signal ends it; every report that was answered is stored.

    Args:
        settings: What to serve and where.
        announce: Told the address once requests are answered.

    Raises:
        ServeError: The port is taken, the address is not allowed, certificate or key are unusable.
        StoreOpenError: The store cannot be used.
        TokenFileError: The token file cannot be used.
    """
    check_exposure(settings)
    bound_arenas()
    _allow_connections()
    listener = bind(settings)
    try:
        app = create_app(settings, open_store(settings))
        server = Server(configure(app, settings))
        server.alone = True
        _load(server.config)
    except BaseException:
        listener.close()
        raise
    announce(address(settings, listener.getsockname()[1]))
    _stop_on_signals(server)
    with _open_metrics(app, settings):
        server.run(sockets=[listener])
    listener.close()


@contextlib.contextmanager
def _open_metrics(app: FastAPI, settings: Settings) -> Iterator[None]:
    """Serve /metrics alone, without a token, on a port of its own, if one is set."""
    if settings.open_metrics_port is None:
        yield
        return
    listener = bind(settings, settings.open_metrics_port)
    metrics = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @metrics.get("/metrics")
    def get_open_metrics() -> Response:
        return Response(app.state.service.exposition.body(), media_type=METRICS_TYPE)

    config = uvicorn.Config(metrics, access_log=False, log_level="warning", server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        listener.close()


def configure(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn is to serve the app."""
    return uvicorn.Config(
        app,
        loop="auto",
        http="httptools",
        ws="none",
        lifespan="on",
        root_path=settings.root_path,
        # Lines of access logs carry no header, hence no token; they cost a third of a request.
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=True,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ssl_certfile=None if settings.tls_cert is None else str(settings.tls_cert),
        ssl_keyfile=None if settings.tls_key is None else str(settings.tls_key),
        # Who asks is nobody's business here: forwarded headers would only be believed wrongly.
        proxy_headers=False,
    )


def check_exposure(settings: Settings) -> None:
    """Refuse to stand open on a network by accident.

    Raises:
        ServeError: Another address than loopback, without tokens and without being told so.
    """
    if settings.tokens is None and not settings.insecure and not is_loopback(settings.host):
        raise ServeError(
            f"--host {settings.host}: without tokens only loopback is served; give --tokens FILE "
            "(`gradwatch token create` makes one), or --insecure on a network you trust"
        )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ServeError("--tls-cert and --tls-key belong together: give both or neither")


def bind(settings: Settings, port: int | None = None) -> socket.socket:
    """Take the port.

    Raises:
        ServeError: It is taken, or the address is not this machine's.
    """
    port = settings.port if port is None else port
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, port))
    except OSError as error:
        listener.close()
        raise ServeError(
            f"{settings.host}:{port}: {error.strerror or error}; "
            "choose another port with --port (0 takes a free one)"
        ) from error
    return listener


def address(settings: Settings, port: int) -> str:
    """What to put into a browser or into GRADWATCH_URL."""
    scheme = "http" if settings.tls_cert is None else "https"
    host = settings.host
    if host in {"0.0.0.0", "::"}:  # noqa: S104  compared with, not bound to
        host = "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{settings.root_path}"


def bound_arenas() -> None:
    # glibc gives every thread a heap of its own, and large short-lived arrays leave each of them
    # full of holes: two heaps hold the same work in half the memory. What a delivery used is kept
    # for the next: fetched anew from the kernel, page by page, it is a tenth of all CPU.
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 2)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def _allow_connections() -> None:
    # Every job keeps a connection; the usual soft limit of 1024 files is a few hundred jobs.
    try:
        import resource  # noqa: PLC0415  POSIX only

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ImportError, OSError, ValueError):
        return  # the limit stays as it is; connections beyond it wait


def _stop_on_signals(server: uvicorn.Server) -> None:
    # uvicorn raises the signal once more when all is done: being asked to stop is no failure.
    def stop(*_: object) -> None:
        server.should_exit = True

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)


def _load(config: uvicorn.Config) -> None:
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"--tls-cert {config.ssl_certfile} --tls-key {config.ssl_keyfile}: {error}"
        ) from error
