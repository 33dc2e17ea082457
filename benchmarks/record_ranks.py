"""Two real ranks of data-parallel training (gloo), each reporting as the client does, with faults.

    python -m benchmarks.record_ranks DIRECTORY            # record every case, bring it to a service
    python -m benchmarks.record_ranks DIRECTORY --columns OUT   # and write what each rank reported

Every case is a run of its own. Rank 0 reports every step, rank 1 every 50th with a checksum of its
weights, as replicas do. The table says what the service made of it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import torch
import torch.distributed as dist
from benchmarks.client_trace import read_spools
from benchmarks.queries import serving
from benchmarks.server_process import free_port
from benchmarks.trace_files import BULKY, save_trace
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch

STEPS: Final = 400
FAULTY_RANK: Final = 1
SAME_OR_UNREAD: Final = {*BULKY, "zeros", "after"} - {"checksum"}
RANK_MISSING_SECONDS: Final = 75.0  # the service says so within 60


@dataclass(frozen=True)
class Case:
    """One fault and what ought to be said of it.

    Attributes:
        start: First step.
        length: Steps it lasts.
        expected: Kind of the incident or notice, empty for none.
        ranks: Ranks that ought to be named.
        about: What happens.
    """

    start: int
    length: int
    expected: str
    ranks: tuple[int, ...]
    about: str


CASES: Final = {
    "healthy": Case(STEPS, 0, "", (), "nothing"),
    "bad_data": Case(257, 3, "exploding", (0,), "rank 1 reads inputs 30 times too large"),
    "nan_data": Case(263, 1, "nonfinite", (0,), "rank 1 reads a NaN; the reduction spreads it"),
    "nan_on_one": Case(271, 1, "nonfinite", (1,), "rank 1's reduced gradient gets a NaN"),
    "drift": Case(233, 1, "replicas_apart", (1,), "rank 1's weights are not those of rank 0"),
    "not_reduced": Case(240, 60, "replicas_apart", (1,), "both ranks leave the reduction out"),
    "rank_lost": Case(230, 170, "rank_missing", (1,), "rank 1 is killed, rank 0 goes on"),
}


def train(name: str, spool: Path) -> None:
    """One rank's process; torchrun's variables say which."""
    case, torch_rank = CASES[name], int(os.environ["RANK"])
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bare = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)
    )
    model = DistributedDataParallel(bare)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = gradwatch.watch(
        model, optimizer, mode="offline", spool=spool, run=name, nonfinite="skip"
    )
    teacher = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    data = torch.Generator().manual_seed(100 + torch_rank)  # each rank its own
    for step in range(STEPS):
        active = case.start <= step < case.start + case.length
        here = active and torch_rank == FAULTY_RANK
        if active and name == "rank_lost":
            _lose(torch_rank, watch)
        x = torch.randn(16, 16, generator=data)
        y = (x @ teacher).argmax(1)
        if here:
            x = _wrong(name, x)
            _drift(name, bare)
        alone = active and name in {"not_reduced", "rank_lost"}
        with model.no_sync() if alone else contextlib.nullcontext():
            loss = nn.functional.cross_entropy((bare if alone else model)(x), y)
            optimizer.zero_grad()
            loss.backward()
        if here and name == "nan_on_one":
            next(bare.parameters()).grad.view(-1)[0] = math.nan  # type: ignore[union-attr]  # backward has run
        optimizer.step()
        watch.log(loss=loss.detach())
        if step % 64 == 0:
            watch.flush(10)
    if name == "rank_lost":
        watch.flush(10)
        os._exit(0)  # the run is still going on, as far as the service knows
    watch.close(timeout=20)
    dist.destroy_process_group()


def _lose(rank: int, watch: gradwatch.Watch) -> None:
    if rank == FAULTY_RANK:
        watch.flush(10)
        os._exit(0)


def _wrong(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "bad_data":
        return 30 * x
    return x.masked_fill(x == x.view(-1)[0], math.nan) if name == "nan_data" else x


@torch.no_grad()
def _drift(name: str, model: nn.Module) -> None:
    if name == "drift":
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))


def launch(name: str, spool: Path) -> None:
    """Run both ranks of a case to their end."""
    port, ranks = str(free_port()), []
    for rank in range(2):
        env = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GRADWATCH_QUIET": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.record_ranks", str(spool), "--train", name]
        ranks.append(subprocess.Popen(command, env=env))
    for process in ranks:
        if process.wait(300):
            raise RuntimeError(f"{name}: a rank failed")


def bring(http: httpx.Client, name: str, spool: Path) -> list[dict[str, Any]]:
    """Bring what both ranks left to the service; return its incidents and notices."""
    url = str(http.base_url).partition("/api/")[0]
    sync = [sys.executable, "-m", "gradwatch_cli", "sync", str(spool / name), "--keep"]
    subprocess.run([*sync, "--url", url], check=True, stdout=subprocess.DEVNULL)
    end = time.monotonic() + (RANK_MISSING_SECONDS if name == "rank_lost" else 20.0)
    while time.monotonic() < end:
        told = [
            *http.get(f"runs/{name}/incidents").json()["items"],
            *http.get(f"runs/{name}/notices").json()["items"],
        ]
        # Rank 1's reports may come first; what was said without rank 0's is taken back.
        told = [item for item in told if item["status"] != "retracted"]
        analysed = http.get(f"runs/{name}").json()["analysed_step"] >= STEPS - 1
        if analysed and (name != "rank_lost" or told):
            return told
        time.sleep(0.5)
    return told


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--columns", type=Path, help="write the reports as traces to this folder")
    parser.add_argument("--train", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train, options.directory)
        return
    print("| what happens | at step | expected | told | at step | ranks | cause |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (_, http):
        for name in options.cases:
            if not (options.directory / name).exists():
                launch(name, options.directory)
            _show(CASES[name], bring(http, name, options.directory))
            if options.columns:
                _save(options.columns, name, options.directory)


def _show(case: Case, told: list[dict[str, Any]]) -> None:
    wanted = f"{case.expected} of rank {case.ranks[0]}" if case.expected else "nothing"
    for item in told or [{}]:
        print(
            f"| {case.about} | {case.start if case.expected else '-'} | {wanted} | "
            f"{item.get('kind', 'nothing')} {item.get('severity', '')} | "
            f"{item.get('opened_step', '-')} | {item.get('ranks', '-')} | {item.get('cause', '-')} |",
            flush=True,
        )


def _save(directory: Path, name: str, spool: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for recorded in read_spools(spool / name):
        kept = {k: v for k, v in recorded.columns.items() if k not in SAME_OR_UNREAD}
        save_trace(
            directory, f"{name}.rank{recorded.rank}", kept, recorded.manifest,
            rank=recorded.rank, world_size=2,
        )  # fmt: skip


if __name__ == "__main__":
    main()
