"""``gradwatch serve``: the service, in one process, until it is told to stop."""

import re
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from gradwatch_cli.errors import CommandError
from gradwatch_service.access.tokens import TokenFileError
from gradwatch_service.notifications import NotifyError
from gradwatch_service.server import ServeError, serve
from gradwatch_service.settings import Settings
from gradwatch_service.store.opening import StoreOpenError

__all__ = ["command"]

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {f"{unit}I": 1024**power for power, unit in enumerate("KMGT", start=1)}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def command(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8642,
    store: Annotated[
        str, typer.Option(help="sqlite:///relative.db or sqlite:////absolute.db.")
    ] = "sqlite:///gradwatch-data/gradwatch.db",
    tokens: Annotated[
        str | None,
        typer.Option(help="Token file; auto makes one that this user's jobs find by themselves."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve another address than loopback without tokens.")
    ] = False,
    allowed_hosts: Annotated[
        str, typer.Option(help="Host names accepted beside loopback, comma separated; * is any.")
    ] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    root_path: Annotated[str, typer.Option(help="Path prefix that a proxy removes.")] = "",
    open_metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port that serves /metrics alone, without a token."),
    ] = None,
    retention_bytes: Annotated[
        str, typer.Option(help="Size beyond which the oldest detail goes, such as 20GB.")
    ] = "20GB",
    retention_full: Annotated[
        str, typer.Option(help="How long every step is kept, such as 24h.")
    ] = "24h",
    metric_tags: Annotated[
        str, typer.Option(help="Tags that become labels of run metrics, comma separated.")
    ] = "",
    max_series: Annotated[
        int, typer.Option(min=1, help="Series of /metrics altogether.")
    ] = 500_000,
    max_series_per_run: Annotated[
        int, typer.Option(min=1, help="Series of /metrics per run.")
    ] = 1000,
    notify: Annotated[
        list[str] | None, typer.Option(help="Address that incidents are posted to; may repeat.")
    ] = None,
    notify_level: Annotated[
        str, typer.Option(help="Least severity that is posted: critical, warning or info.")
    ] = "critical",
) -> None:
    """Take reports, diagnose, recommend, and serve what is known, until it is told to stop."""
    try:
        settings = Settings(
            host=host,
            port=port,
            store=store,
            tokens=None if tokens is None else _token_file(tokens),
            insecure=insecure,
            allowed_hosts=_list(allowed_hosts),
            tls_cert=tls_cert,
            tls_key=tls_key,
            root_path=root_path.rstrip("/"),
            open_metrics_port=open_metrics_port,
            retention_bytes=_bytes(retention_bytes),
            retention_full_seconds=_seconds(retention_full),
            metric_tags=_list(metric_tags),
            max_series=max_series,
            max_series_per_run=max_series_per_run,
            notify=tuple(notify or ()),
            notify_level=notify_level,
        )
        serve(settings, lambda address: print(f"gradwatch serves at {address}", flush=True))
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise CommandError(f"{option}: {first['msg']}", code=2) from None
    except (NotifyError, ServeError, StoreOpenError, TokenFileError) as error:
        raise CommandError(str(error), code=2) from None


def _token_file(given: str) -> Path:
    if given != "auto":
        return Path(given)
    from gradwatch_service.access.tokens import auto_tokens  # noqa: PLC0415  only here

    return auto_tokens()


def _list(given: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in given.split(",") if part.strip())


def _bytes(given: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?I?)B?", given.strip().upper())
    if found is None or found[2] == "I":
        raise CommandError(f"--retention-bytes {given!r}: expected a size such as 20GB", code=2)
    return int(float(found[1]) * UNITS[found[2]])


def _seconds(given: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhd]?)", given.strip().lower())
    if found is None:
        raise CommandError(f"--retention-full {given!r}: expected a time such as 24h", code=2)
    return float(found[1]) * SECONDS[found[2]]
