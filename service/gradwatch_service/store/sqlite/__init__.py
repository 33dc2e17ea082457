"""The embedded store: one SQLite file, one thread that writes it."""

from gradwatch_service.store.sqlite.engine import SqliteStore

__all__ = ["SqliteStore"]
