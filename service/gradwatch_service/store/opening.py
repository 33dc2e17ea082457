"""From ``--store`` to a store, or one clear line that says why not."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Store

__all__ = ["StoreOpenError", "open_store", "sqlite_path"]


class StoreOpenError(RuntimeError):
    """The store cannot be opened; the message is one line that says why and what to do."""


def open_store(settings: Settings) -> Store:
    """Open the store that the settings name; makes an empty one where there is none.

    Raises:
        StoreOpenError: The address is not understood, or the store cannot be used.
    """
    # Imported here: a PostgreSQL deployment needs none of the embedded engine, and vice versa.
    from gradwatch_service.store.sqlite.engine import SqliteStore  # noqa: PLC0415

    return SqliteStore(sqlite_path(settings.store), settings)


def sqlite_path(address: str) -> Path:
    """The file that ``sqlite:///relative.db`` or ``sqlite:////absolute.db`` names.

    Raises:
        StoreOpenError: Another kind of address.
    """
    prefix = "sqlite:///"
    if not address.startswith(prefix) or address == prefix:
        raise StoreOpenError(
            f"--store {address!r}: expected sqlite:///relative.db or sqlite:////absolute.db"
        )
    return Path(unquote(address[len(prefix) :]))
