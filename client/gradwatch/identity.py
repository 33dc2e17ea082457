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

import torch.distributed as dist

from gradwatch.errors import WatchError

__all__ = ["Identity", "identify"]

# Watches are numbered per process so that the n-th one on every rank shares one key in the store.
_watches = count()
# A rank that never calls watch() must not hold the others for the store's own timeout (minutes).
_PATIENCE = timedelta(seconds=60)


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
    """

    run: str
    session: str
    rank: int = 0
    world_size: int = 1
    project: str = "default"
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def identify(
    *,
    run: str | None,
    project: str = "default",
    name: str | None = None,
    tags: Mapping[str, object] | None = None,
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
        environment: Read instead of ``os.environ``.

    Returns:
        The same run and session on every rank of the job.

    Raises:
        WatchError: The ranks were started with different run ids, or rank 0 never called watch().
    """
    env = os.environ if environment is None else environment
    rank, world_size = _place(env)
    wanted = run or _elastic_run(env)
    mine = {"run": wanted or _made_up(name), "session": secrets.token_hex(8)}
    agreed = _share(mine, rank, wanted) if world_size > 1 and _grouped() else mine
    return Identity(
        run=agreed["run"],
        session=agreed["session"],
        rank=rank,
        world_size=world_size,
        project=project,
        name=name,
        tags={str(key): str(value) for key, value in (tags or {}).items()},
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


def _share(mine: dict[str, str], rank: int, wanted: str | None) -> dict[str, str]:
    """Let rank 0 decide, through the store of the default process group."""
    # The store has no public accessor; it is what torch's own rendezvous and FSDP checks use.
    store = dist.distributed_c10d._get_default_store()
    key = f"gradwatch/identity/{next(_watches)}"
    if rank == 0:
        store.set(key, json.dumps(mine))
        return mine
    try:
        store.wait([key], _PATIENCE)
    except RuntimeError as error:  # DistStoreError, a timeout
        raise WatchError(
            f"rank {rank} waited {_PATIENCE.seconds} s for rank 0 to call gradwatch.watch(). "
            "Call it on every rank, after init_process_group, in the same order."
        ) from error
    agreed: dict[str, str] = json.loads(store.get(key))
    if wanted is not None and wanted != agreed["run"]:
        raise WatchError(
            f"rank {rank} was given the run id {wanted!r}, rank 0 {agreed['run']!r}. "
            "Give every rank the same one, or none."
        )
    return agreed
