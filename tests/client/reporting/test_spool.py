"""The spool: order, bounds, torn tails, disks that are full."""

import os
import resource
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.reporting.samples import IDENTITY, manifest, sample

from gradwatch.reporting import frames
from gradwatch.reporting.backlog import Backlog
from gradwatch.reporting.batching import Batching
from gradwatch.reporting.delivery import Delivery, Layout, emptied, read_delivery
from gradwatch.reporting.disk import is_network_mount, try_lock
from gradwatch.reporting.packing import Packer
from gradwatch.reporting.replay import find_spools
from gradwatch.reporting.spool import Spool
from gradwatch.statistics import STATISTICS

WIRE = manifest()


def deliveries(count: int, steps: int = 3) -> list[Delivery]:
    """Deliveries with sequences from 0, of a few steps each."""
    batching = Batching(0, lambda *_: None, lambda *_: None)
    batching.introduce("default", Layout(WIRE, WIRE.hash, Packer(STATISTICS, WIRE)))
    made: list[Delivery] = []
    for index in range(count):
        for step in range(index * steps, (index + 1) * steps):
            each = sample(step)
            batching.read(each, each.stats.buffer, 0.0)
        made += batching.deliveries(0.0, everything=True)
    return made


def new_spool(directory: Path, **limits: int) -> Spool:
    spool = Spool(directory, IDENTITY, **limits)
    spool.introduce(WIRE)
    return spool


def drain(spool: Spool | Backlog) -> list[Delivery]:
    found = []
    while (head := spool.head()) is not None:
        found.append(head)
        spool.pop()
    return found


def test_nothing_is_created_before_something_is_written(tmp_path: Path) -> None:
    new_spool(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_deliveries_come_back_in_order_and_nothing_stays(tmp_path: Path) -> None:
    spool, made = new_spool(tmp_path, segment_bytes=2000), deliveries(9)
    for delivery in made:
        assert spool.append(delivery) == Counter()
    assert len(list(spool.folder.glob("*.gw"))) > 2
    assert drain(spool) == made
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_appends_and_reads_in_any_order_keep_the_order(
    tmp_path_factory: pytest.TempPathFactory, moves: list[bool]
) -> None:
    spool, waiting = new_spool(tmp_path_factory.mktemp("s"), segment_bytes=3000), MADE[:]
    found: list[Delivery] = []
    for append in moves:
        if append and waiting:
            spool.append(waiting.pop(0))
        elif (head := spool.head()) is not None:
            found.append(head)
            spool.pop()
    found += drain(spool)
    assert found == MADE[: len(found)]
    assert len(found) + len(waiting) == len(MADE)
    spool.close()


MADE = deliveries(12)


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    spool.append(MADE[0])
    (path,) = spool.folder.glob("*.gw")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    spool.close()


def test_beyond_the_cap_the_oldest_steps_are_counted_instead_of_kept(tmp_path: Path) -> None:
    spool, made = new_spool(tmp_path, max_bytes=60_000), deliveries(40, steps=20)
    dropped: Counter[str] = Counter()
    for delivery in made:
        dropped.update(spool.append(delivery) or {})
    size = sum(path.stat().st_size for path in spool.folder.glob("*.gw"))
    found = drain(spool)
    assert [d.sequence for d in found] == list(range(40))
    kept = [d for d in found if d.steps]
    assert kept == made[-len(kept) :]
    assert len(kept) >= 5
    told = sum((Counter(d.dropped) for d in found), Counter())
    assert told == dropped == {"spool_full": 20 * (40 - len(kept))}
    assert size <= 60_000 + max(len(d.body) for d in made)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2000), st.booleans())
def test_a_torn_or_damaged_tail_costs_no_whole_delivery(
    tmp_path_factory: pytest.TempPathFactory, lost: int, damaged: bool
) -> None:
    spool = new_spool(tmp_path_factory.mktemp("s"))
    for delivery in MADE[:4]:
        spool.append(delivery)
    spool.close()
    (path,) = spool.folder.glob("*.gw")
    whole = path.read_bytes()
    lost = min(lost, len(whole) - 1)
    data = whole[: len(whole) - lost]
    if damaged and lost:
        data += bytes(lost)  # a hole where the crash left the file's length but not its content
    path.write_bytes(data)
    with path.open("rb") as file:
        found = [read_delivery(f.body) for f in frames.unpack(file) if f.kind == frames.DELIVERY]
    assert found == MADE[: len(found)]
    ends = _ends(whole)
    assert len(found) == sum(end <= len(whole) - lost for end in ends)


def _ends(data: bytes) -> list[int]:
    """Where each delivery's frame ends."""
    ends, at = [], len(frames.MAGIC)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        if data[at + 8 : at + 9] == frames.DELIVERY:
            ends.append(at + 8 + length)
        at += 8 + length
    return ends


def test_a_full_disk_switches_it_off_with_one_line_and_memory_takes_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit on the size of files stands for the full disk: the kernel refuses the same way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    backlog = Backlog(0, new_spool(tmp_path))
    backlog.retreat()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        for delivery in MADE:
            assert backlog.append(delivery) == Counter()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert backlog.spool is not None
    assert backlog.spool.off is not None
    assert 0 < backlog.spooled < len(MADE)
    assert drain(backlog) == MADE
    assert len([r for r in caplog.records if "switched off" in r.getMessage()]) == 1


@pytest.mark.parametrize("obstacle", ["a file", "a missing device"])
def test_a_folder_that_cannot_be_made_switches_it_off(
    obstacle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    where = blocked if obstacle == "a file" else Path("/proc/gradwatch")
    spool = new_spool(where)
    assert spool.append(MADE[0]) is None
    assert spool.append(MADE[1]) is None
    assert spool.off is not None
    assert len(caplog.records) == 1


def test_a_segment_that_somebody_deleted_does_not_stop_the_rest(tmp_path: Path) -> None:
    spool = new_spool(tmp_path, segment_bytes=2000)
    for delivery in MADE:
        spool.append(delivery)
    min(spool.folder.glob("*.gw")).unlink()
    found = drain(spool)
    assert found
    assert found == MADE[-len(found) :]


def test_two_processes_cannot_take_the_same_spool(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    spool.append(MADE[0])
    code = (
        "import fcntl, sys\n"
        "try: fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: print('taken')"
    )
    command = [sys.executable, "-c", code, str(spool.folder / "lock")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "taken\n"
    spool.close()
    descriptor = try_lock(spool.folder)
    assert descriptor is not None
    os.close(descriptor)


def test_a_survey_finds_every_spool_in_the_order_of_its_start(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    for delivery in MADE[:3]:
        spool.append(delivery)
    spool.finish("failed")
    spool.close()
    (found,) = find_spools(tmp_path)
    assert (found.run, found.session, found.rank, found.deliveries) == ("r", "s", 0, 3)
    assert found.damaged == 0
    assert find_spools(found.folder) == [found]


@pytest.mark.parametrize(
    ("kind", "network"), [("nfs4", True), ("cifs", True), ("ext4", False), ("tmpfs", False)]
)
def test_network_file_systems_are_recognised(kind: str, network: bool, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"root / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")
    assert is_network_mount(tmp_path, mounts) is network
    assert not is_network_mount(Path("/"), mounts)


def test_memory_without_a_spool_is_bounded_and_counts() -> None:
    size = len(MADE[0].body)
    backlog = Backlog(0, None, max_bytes=5 * size)
    dropped: Counter[str] = Counter()
    for delivery in MADE:
        dropped.update(backlog.append(delivery))
    found = drain(backlog)
    assert [d.sequence for d in found] == list(range(len(MADE)))
    kept = [d for d in found if d.steps]
    assert kept == MADE[-len(kept) :]
    assert dropped == {"buffer_full": 3 * (len(MADE) - len(kept))}
    assert found[0] == emptied(MADE[0], 0, "buffer_full")


def test_an_emptied_delivery_keeps_what_it_already_told() -> None:
    once = emptied(MADE[0], 0, "spool_full")
    assert once.dropped == {"spool_full": 3}
    assert emptied(once, 0, "rejected").dropped == {"spool_full": 3}
