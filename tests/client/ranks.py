"""Data-parallel jobs on this machine: one process per rank, gloo between them."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

Job = Callable[[int], Any]


def run_ranks(job: Job, world_size: int) -> list[Any]:
    """Run ``job(rank)`` on every rank of a process group; return what each returned."""
    context = multiprocessing.get_context("forkserver")
    # Imported once, in the server that the ranks are forked from; every optimizer needs _dynamo.
    context.set_forkserver_preload(["torch", "torch._dynamo", "gradwatch"])
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(world_size, mp_context=context) as pool,
    ):
        meeting = Path(folder, "store")
        started = [pool.submit(_rank, job, rank, world_size, meeting) for rank in range(world_size)]
        return [each.result(timeout=120) for each in started]


def _rank(job: Job, rank: int, world_size: int, meeting: Path) -> Any:
    torch.set_num_threads(1)
    os.environ.update(TORCHELASTIC_RUN_ID="none", GRADWATCH_QUIET="1", GRADWATCH_MODE="disabled")
    store = dist.FileStore(str(meeting), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        return job(rank)
    finally:
        dist.barrier()
        dist.destroy_process_group()
