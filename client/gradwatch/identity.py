"""Who is reporting: run, session, rank. Agreed between ranks without a collective."""

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from gradwatch.console import LogOnce

__all__ = ["Identity", "RankStore", "default_store", "identify"]

# Watches are numbered per process so that the n-th one on every rank shares one key in the store.
_watches = count()
# A rank that never calls watch() must not hold the others for the store's own timeout (minutes).
_PATIENCE = timedelta(seconds=60)


class RankStore(Protocol):
    """The part of torch's key-value store that is used here; some builds of torch have none."""

    def set(self, key: str, value: str, /) -> None:
        """Set a key."""

    def get(self, key: str, /) -> bytes:
        """Wait for a key and return its value."""
        ...

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, 0 at first; return it."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Say whether all keys are there, without waiting."""
        ...

    def wait(self, keys: list[str], timeout: timedelta, /) -> None:
        """Wait for keys."""

    def delete_key(self, key: str, /) -> bool:
        """Forget a key; say whether it was there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One rank of one start of one run.

    Attributes:
        run: Run id, the same on every rank.
        session: Random mark of this job start, the same on every rank.
        rank: This rank, from 0.
        world_size: Number of ranks.
        project: Project the run belongs to.
        name: Name for people, or None.
        tags: Labels for people, name to text.
        replica: Whether rank 0 holds the same tensors: it reports for all then.
        shared: Whether run and session are agreed between the ranks; always true for one rank.
    """

    run: str
    session: str
    rank: int = 0
    world_size: int = 1
    project: str = "default"
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    replica: bool = False
    shared: bool = True


def identify(
    *,
    run: str | None,
    project: str = "default",
    name: str | None = None,
    tags: Mapping[str, object] | None = None,
    tensors: str = "",
    log: LogOnce | None = None,
    environment: Mapping[str, str] | None = None,
) -> Identity:
    """Settle run id and session for this process.

    The run id is the one asked for, else ``TORCHELASTIC_RUN_ID`` (torchrun's default ``none`` does
    not count), else a name made by rank 0. Rank 0 shares run id and session through the store of the
    default process group: ranks wait for a key, there is no collective that one rank could miss.

    Args:
        run: Run id asked for by argument or ``GRADWATCH_RUN``, or None.
        project: Project name.
        name: Name for people; also the beginning of a run id made up here.
        tags: Labels; values are turned into text.
        tensors: Stands for this rank's tensors; ranks with rank 0's are its replicas.
        log: Tells what the ranks do not agree on.
        environment: Read instead of ``os.environ``.

    Returns:
        The same run and session on every rank of the job. Where that cannot be had, ``shared`` is
        False on the ranks above 0, which then had better not report.
    """
    env = os.environ if environment is None else environment
    rank, world_size = _place(env)
    wanted = run or _elastic_run(env)
    mine = {"run": wanted or _made_up(name), "session": secrets.token_hex(8), "tensors": tensors}
    agreed = mine
    if world_size > 1:
        agreed = _share(mine, rank, wanted, log or LogOnce())
    return Identity(
        run=agreed["run"],
        session=agreed["session"],
        rank=rank,
        world_size=world_size,
        project=project,
        name=name,
        tags={str(key): str(value) for key, value in (tags or {}).items()},
        replica=rank > 0 and agreed is not mine and agreed["tensors"] == tensors,
        shared=rank == 0 or agreed is not mine,
    )


def _place(env: Mapping[str, str]) -> tuple[int, int]:
    """Return rank and world size: of the process group, else as the launcher says, else 0 of 1."""
    if _grouped():
        return dist.get_rank(), dist.get_world_size()
    rank, size = env.get("RANK", ""), env.get("WORLD_SIZE", "")
    if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
        return int(rank), int(size)
    return 0, 1


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def _elastic_run(env: Mapping[str, str]) -> str | None:
    run = env.get("TORCHELASTIC_RUN_ID", "none")
    return None if run in {"", "none"} else run


def _made_up(name: str | None) -> str:
    """Make a run id that people can read and that sorts by time."""
    stem = name or Path(sys.argv[0] or "run").stem
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in stem).strip("-")[:64]
    return f"{plain or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _share(mine: dict[str, str], rank: int, wanted: str | None, log: LogOnce) -> dict[str, str]:
    """Let rank 0 decide, through the store of the default process group."""
    store = default_store()
    if store is None:
        if rank > 0:
            log(
                "no group",
                f"rank {rank}: there is no process group yet, so rank 0 reports alone. Call "
                "gradwatch.watch() after torch.distributed.init_process_group().",
            )
        return mine
    key = f"gradwatch/identity/{next(_watches)}"
    if rank == 0:
        store.set(key, json.dumps(mine))
        return mine
    try:
        store.wait([key], _PATIENCE)
        agreed: dict[str, str] = json.loads(store.get(key))
    except RuntimeError as error:  # a timeout, a store that is gone
        log(
            "no rank 0",
            f"rank {rank} waited {_PATIENCE.seconds} s for rank 0 to call gradwatch.watch() and does "
            f"not report ({error}). Call it on every rank, in the same order.",
        )
        return mine
    if wanted is not None and wanted != agreed["run"]:
        log(
            "two runs",
            f"rank {rank} was given the run id {wanted!r}, rank 0 {agreed['run']!r}; rank 0's counts.",
        )
    return agreed


def default_store() -> RankStore | None:
    """Return the key-value store of the default process group; None without a group."""
    if not _grouped():
        return None
    # The store has no public accessor; it is what torch's own rendezvous and FSDP checks use.
    store: RankStore = dist.distributed_c10d._get_default_store()
    return store
