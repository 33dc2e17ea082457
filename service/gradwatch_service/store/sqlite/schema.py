"""The tables, their version, and the way from every older version to this one.

The run comes first in every key, so that PostgreSQL can spread runs over machines with the same
schema. Rowid tables throughout: large values beside the key make WITHOUT ROWID tables slow.
"""

from __future__ import annotations

import sqlite3

__all__ = ["APPLICATION_ID", "MIGRATIONS", "VERSION", "migrate"]

APPLICATION_ID = 0x67776174  # "gwat": tells our files from other programs'

VERSION_1 = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL UNIQUE, project TEXT NOT NULL, name TEXT, note TEXT,
    tags TEXT NOT NULL DEFAULT '{}', status TEXT, state TEXT NOT NULL DEFAULT 'warming_up',
    attempt INTEGER NOT NULL DEFAULT 0, world_size INTEGER NOT NULL DEFAULT 1, policy TEXT,
    dropped TEXT NOT NULL DEFAULT '{}', counters BLOB,
    created_at REAL NOT NULL, last_report_at REAL, finished_at REAL, deleted_at REAL,
    revision INTEGER NOT NULL DEFAULT 0);
CREATE INDEX run_project ON run (project, id);
CREATE TABLE attempt (
    run_id INTEGER NOT NULL, attempt INTEGER NOT NULL, session TEXT, created_at REAL NOT NULL,
    PRIMARY KEY (run_id, attempt), UNIQUE (run_id, session));
CREATE TABLE manifest (
    run_id INTEGER NOT NULL, hash TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (run_id, hash));
CREATE TABLE stream (
    id INTEGER PRIMARY KEY, run_id INTEGER NOT NULL, attempt INTEGER NOT NULL,
    optimizer TEXT NOT NULL, rank INTEGER NOT NULL, manifest TEXT NOT NULL,
    registration TEXT NOT NULL DEFAULT '{}',
    first_step INTEGER, last_step INTEGER, steps INTEGER NOT NULL DEFAULT 0,
    UNIQUE (run_id, attempt, optimizer, rank));
CREATE TABLE registration (
    run_id INTEGER NOT NULL, stream_id INTEGER NOT NULL, hash TEXT NOT NULL,
    PRIMARY KEY (run_id, stream_id, hash));
CREATE TABLE delivery (
    id INTEGER PRIMARY KEY, run_id INTEGER NOT NULL, attempt INTEGER NOT NULL,
    rank INTEGER NOT NULL, sequence INTEGER NOT NULL, stream_id INTEGER NOT NULL,
    manifest TEXT NOT NULL, digest BLOB NOT NULL, received REAL NOT NULL,
    first_step INTEGER, last_step INTEGER, steps INTEGER NOT NULL,
    partial BLOB, payload BLOB,
    UNIQUE (run_id, attempt, rank, sequence));
-- Rows whose payload was moved into chunks leave this index: what is hot stays quick to find.
CREATE INDEX delivery_hot ON delivery (run_id, stream_id, first_step, last_step)
    WHERE payload IS NOT NULL;
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY, run_id INTEGER NOT NULL, stream_id INTEGER NOT NULL,
    first_step INTEGER NOT NULL, last_step INTEGER NOT NULL, steps INTEGER NOT NULL,
    manifest TEXT NOT NULL, made_at REAL NOT NULL, detail INTEGER NOT NULL DEFAULT 1,
    body BLOB NOT NULL);
CREATE INDEX chunk_steps ON chunk (run_id, stream_id, first_step, last_step);
CREATE TABLE chunk_tensor (
    run_id INTEGER NOT NULL, chunk_id INTEGER NOT NULL, tensor INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (run_id, chunk_id, tensor));
CREATE TABLE rollup (
    id INTEGER PRIMARY KEY, run_id INTEGER NOT NULL, stream_id INTEGER NOT NULL,
    tensor INTEGER NOT NULL, level INTEGER NOT NULL,
    first_step INTEGER NOT NULL, last_step INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX rollup_steps ON rollup (run_id, stream_id, tensor, level, first_step);
CREATE TABLE document (
    run_id INTEGER NOT NULL, collection TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (run_id, collection, key));
CREATE INDEX document_collection ON document (collection, run_id);
"""

# Scripts by the version they lead to. A released one is never changed, only followed by another.
MIGRATIONS = {1: VERSION_1}
VERSION = max(MIGRATIONS)


def migrate(connection: sqlite3.Connection) -> int:
    """Bring the tables to :data:`VERSION`, in one transaction; return the version they had."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    missing = [MIGRATIONS[version] for version in sorted(MIGRATIONS) if version > found]
    if missing:
        script = "\n".join(missing)
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script}\nPRAGMA application_id = {APPLICATION_ID};"
            f"\nPRAGMA user_version = {VERSION};\nCOMMIT;"
        )
    return int(found)
