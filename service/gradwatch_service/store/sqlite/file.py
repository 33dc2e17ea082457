"""The database file: opened with the promises we make, refused in one clear line otherwise."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import IO

from gradwatch_service.store.opening import StoreOpenError
from gradwatch_service.store.sqlite.schema import APPLICATION_ID, VERSION, migrate

__all__ = ["Database", "connect", "lock", "open_database"]

QUICK_CHECK_BYTES = 128 * 2**20


class Database:
    """A database file that is in order, and connections to it that read.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def reader(self) -> sqlite3.Connection:
        """A connection that cannot write; the caller closes it."""
        return connect(self.path, read_only=True)

    def give_back(self, pages: int) -> None:
        """Cut free pages off the file's end. Holds the write lock for so many pages at most."""
        with contextlib.closing(connect(self.path)) as connection:
            # As a script: a single execute() steps this statement, and frees a page, only once.
            connection.executescript(f"PRAGMA incremental_vacuum({int(pages)})")

    def checkpoint(self) -> None:
        """Write the journal into the file and cut it off, unless somebody is in the way."""
        with contextlib.closing(connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def size_bytes(self) -> int:
        """Bytes on disk, journal included."""
        names = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(name.stat().st_size for name in names if name.exists())


def lock(path: Path) -> IO[bytes]:
    """Take the file for this process; closing the result (or dying) gives it back.

    Raises:
        StoreOpenError: Another process has it, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = path.with_name(path.name + ".lock").open("ab")
    except OSError as error:
        raise StoreOpenError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        _flock(held)
    except OSError:
        held.close()
        raise StoreOpenError(
            f"{path}: another gradwatch process is using this store; "
            "stop it, or choose another file with --store"
        ) from None
    return held


def open_database(path: Path) -> sqlite3.Connection:
    """Open the file for writing, at the newest schema.

    Raises:
        StoreOpenError: It cannot be written, is damaged, another program's, or of a newer version.
    """
    connection: sqlite3.Connection | None = None
    try:
        connection = connect(path)
        _recognise(connection, path)
        # Only an empty file takes this: freed pages can then be given back a slice at a time.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Debian's SQLite writes zeros over every page it frees: as much again as compaction itself.
        connection.execute("PRAGMA secure_delete = FAST")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        migrate(connection)
        # A file that cannot be written says so here, not at the first report.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise StoreOpenError(f"{path}: {_reason(error, path)}") from error
    except StoreOpenError:
        if connection is not None:
            connection.close()
        raise
    return connection


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Connect without changing anything; used by one thread at a time."""
    mode = "ro" if read_only else "rwc"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,  # transactions are begun by hand
        check_same_thread=False,
        timeout=10,
    )
    # Every reading thread has a connection of its own: only the writer's cache may be large.
    connection.execute(f"PRAGMA cache_size = {-2000 if read_only else -16000}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA foreign_keys = OFF")
    return connection


def _recognise(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise StoreOpenError(
            f"{path}: a database of another program; choose another file with --store"
        )
    if version > VERSION:
        raise StoreOpenError(
            f"{path}: schema version {version} is newer than this gradwatch reads ({VERSION}); "
            "upgrade gradwatch"
        )
    if tables and path.stat().st_size <= QUICK_CHECK_BYTES:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreOpenError(
                f"{path}: damaged ({verdict.splitlines()[-1]}); `gradwatch store check` lists "
                "the damage, a copy from `gradwatch store backup` replaces the file"
            )


def _reason(error: sqlite3.Error, path: Path) -> str:
    text = str(error)
    if "not a database" in text:
        return "not a gradwatch database; choose another file with --store"
    if "malformed" in text:
        return "damaged; `gradwatch store check` lists the damage"
    if "readonly" in text or "unable to open" in text:
        if path.is_dir():
            return "a folder, not a file; name a file in it"
        return "cannot be written; check the permissions of the file and its folder"
    if "full" in text:
        return "the disk is full"
    return f"cannot be used: {text}"


def _flock(held: IO[bytes]) -> None:
    if os.name == "nt":
        import msvcrt  # noqa: PLC0415  Windows only

        msvcrt.locking(held.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # typed on Windows only
        return
    import fcntl  # noqa: PLC0415  POSIX only

    with contextlib.suppress(AttributeError):
        fcntl.flock(held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
