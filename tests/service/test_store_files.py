"""Store files: refused in one clear line, checked, copied, and read by later versions."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
import time
from pathlib import Path

import pytest
from tests.contract.engines import delivery
from tests.service import jobs

from gradwatch_cli.main import run
from gradwatch_service.settings import Settings
from gradwatch_service.store.opening import StoreOpenError, sqlite_path
from gradwatch_service.store.sqlite import SqliteStore, schema

RELEASED = Path(__file__).parent / "stores"


def filled(path, deliveries=5):
    store = SqliteStore(path, Settings())
    store.register("run", jobs.manifest(), now=time.time())
    for n in range(deliveries):
        made = jobs.report(range(n * 20, n * 20 + 20), sequence=n)
        store.append(delivery("run", made, jobs.manifest())).result()
    store.close()
    return path


def steps(store):
    blocks = store.read("run", attempt=0, optimizer="default", rank=0)
    return [step for rows in blocks for step in rows.steps.tolist()]


def refusal(path):
    with pytest.raises(StoreOpenError) as caught:
        SqliteStore(path, Settings())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_second_service_on_the_file_is_refused_until_the_first_is_gone(tmp_path):
    path = filled(tmp_path / "a.db")
    first = SqliteStore(path, Settings())

    assert "another gradwatch process" in refusal(path)
    first.close()
    SqliteStore(path, Settings()).close()


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path):
    text, foreign = tmp_path / "text.db", tmp_path / "foreign.db"
    text.write_text("not a database at all, but long enough to be taken for a header of one")
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = text.read_bytes(), foreign.read_bytes()

    assert "not a gradwatch database" in refusal(text)
    assert "another program" in refusal(foreign)
    assert (text.read_bytes(), foreign.read_bytes()) == before


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    path = filled(tmp_path / "a.db")
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")

    assert "newer" in refusal(path)


def test_a_damaged_page_is_refused_at_the_start_and_found_by_check(tmp_path, capsys):
    path = filled(tmp_path / "a.db", deliveries=40)
    damaged = bytearray(path.read_bytes())
    for page in range(3, len(damaged) // 4096, 2):
        damaged[page * 4096 : page * 4096 + 300] = bytes(range(100)) * 3
    path.write_bytes(damaged)

    assert "damaged" in refusal(path)
    assert run(["store", "check", "--store", f"sqlite:///{path}"]) == 1
    assert capsys.readouterr().out


def test_a_packed_column_that_is_damaged_is_found_by_check(tmp_path, capsys):
    path = filled(tmp_path / "a.db")
    with sqlite3.connect(path) as connection:
        (body,) = connection.execute("SELECT payload FROM delivery WHERE id = 3").fetchone()
        connection.execute("UPDATE delivery SET payload = ? WHERE id = 3", (body[:-5],))

    assert run(["store", "check", "--store", f"sqlite:///{path}", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["damage"][0].startswith("delivery 3")


def test_a_folder_that_cannot_be_written_and_a_folder_as_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    refusal(tmp_path / "file" / "a.db")
    refusal(tmp_path)


@pytest.mark.parametrize("address", ["mysql://x", "sqlite:///", "sqlite://a.db", ""])
def test_an_address_that_is_not_understood_is_refused(address):
    with pytest.raises(StoreOpenError, match=r"sqlite:///relative\.db"):
        sqlite_path(address)


def test_a_backup_beside_a_running_service_is_whole_and_opens(tmp_path, capsys):
    path = filled(tmp_path / "a.db")
    store = SqliteStore(path, Settings())
    try:
        target = tmp_path / "copy.db"
        address = f"sqlite:///{path}"
        assert run(["store", "backup", str(target), "--store", address]) == 0
        assert run(["store", "backup", str(target), "--store", address]) == 2
    finally:
        store.close()
    copy = SqliteStore(target, Settings())
    assert steps(copy) == list(range(100))
    copy.close()


def test_compact_and_stats_on_the_command_line(tmp_path, capsys):
    address = f"sqlite:///{filled(tmp_path / 'a.db')}"

    def stats():
        assert run(["store", "stats", "--store", address, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    before = stats()
    assert (before["runs"], before["steps"], before["hot_deliveries"]) == (1, 100, 5)
    assert run(["store", "compact", "--store", address]) == 0
    assert "1 chunks made" in capsys.readouterr().out
    after = stats()
    assert (after["steps"], after["hot_deliveries"], after["chunks"]) == (100, 0, 1)
    assert after["journal_bytes"] == 0
    assert run(["store", "check", "--store", address]) == 0
    assert run(["store", "stats", "--store", f"sqlite:///{tmp_path}/none.db"]) == 2
    assert not (tmp_path / "none.db").exists()


def test_a_read_only_file_is_refused_or_the_service_runs_as_root(tmp_path):
    path = filled(tmp_path / "a.db")
    path.chmod(stat.S_IRUSR)
    try:
        with path.open("r+b"):
            pass
    except PermissionError:
        assert "cannot be written" in refusal(path)
    else:  # root may write everything: then the store must simply work
        store = SqliteStore(path, Settings())
        assert steps(store) == list(range(100))
        store.close()


@pytest.mark.parametrize("file", sorted(RELEASED.glob("*.db")), ids=lambda p: p.stem)
def test_a_store_of_every_released_schema_opens_with_all_its_steps(tmp_path, file):
    path = tmp_path / "old.db"
    shutil.copy(file, path)

    store = SqliteStore(path, Settings())
    try:
        assert steps(store) == list(range(200))
        record = store.run("run")
        assert (record.steps, record.status) == (200, "completed")
        assert store.documents("run", "incident") == {"i": b'{"opened_step": 7}'}
        late = jobs.report(range(200, 220), sequence=10)
        assert store.append(delivery("run", late, jobs.manifest())).result().stored is True
    finally:
        store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)


def test_there_is_a_file_of_every_released_schema():
    assert {int(p.stem.removeprefix("schema-")) for p in RELEASED.glob("*.db")} == set(
        schema.MIGRATIONS
    )
