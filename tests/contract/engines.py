"""The stores that the contract holds, each made fresh in a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gradwatch_service.ingest.validation import numel_of, rows_of
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Delivery, Store
from gradwatch_service.store.delivering import deliver
from gradwatch_service.store.sqlite import SqliteStore
from gradwatch_wire import Manifest, Report

ENGINES = ("sqlite",)


def open_engine(engine: str, directory: Path, **options: Any) -> Store:
    """Open the engine's store in the folder; the same folder again opens the same store."""
    assert engine == "sqlite"
    return SqliteStore(directory / "store.db", Settings(**options))


def delivery(run: str, made: Report, manifest: Manifest, **more: Any) -> Delivery:
    """A report as the store is given it."""
    rows = rows_of(made, manifest, numel_of(manifest), Settings())
    more = {"dropped": made.dropped, "partial": made.partial, "received": time.time()} | more
    return deliver(run, rows, sequence=made.sequence, manifest=made.manifest, **more)
