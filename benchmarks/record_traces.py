"""Record gradient traces of small jobs, healthy or with labelled faults, through the client itself.

    python -m benchmarks.record_traces DIRECTORY --set seen              # every run of some jobs
    python -m benchmarks.record_traces DIRECTORY --steps 200000 --runs h0 --histogram-every 0

Writes ``<job>.<run>.npz`` and ``.json`` as ``benchmarks.detectors`` reads them, and goes on where it was
stopped. The sets: ``basic`` (six jobs), ``seen`` (six more), ``heldout`` (eight that no detector was
developed on) and ``final`` (four, recorded once at the end). A run is healthy (``h0``, ``h1``) or has one to four faults; :data:`PLANS` lists them.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from benchmarks.client_trace import Recorded, read_spools
from benchmarks.fault_kinds import CLASSES, LENGTHS, Injection
from benchmarks.final_jobs import FINAL
from benchmarks.heldout_jobs import HELD_OUT
from benchmarks.jobs_seen import SEEN
from benchmarks.labels import label
from benchmarks.recorded_jobs import JOBS, Job
from benchmarks.trace_files import save_trace
from torch import Tensor, nn

import gradwatch

SETS: Final[Mapping[str, Mapping[str, Job]]] = {
    "basic": JOBS,
    "seen": SEEN,
    "heldout": HELD_OUT,
    "final": FINAL,
}

# Run to its faults, each with the share of the run after which it begins.
PLANS: Final[Mapping[str, Sequence[tuple[str, float]]]] = {
    "h0": (),
    "h1": (),
    "t1": (("lr_spike", 0.34), ("corrupt_labels", 0.77)),
    "t2": (("nan_tensor", 0.06), ("fp16_overflow", 0.33), ("nan_tensor", 0.56), ("nan_tensor", 0.84)),
    "t3": (("loss_scale", 0.29), ("corrupt_inputs", 0.75)),
    "p1": (("frozen_layer", 0.28), ("no_zero_grad", 0.77)),
    "p2": (("dead", 0.5),),
    "p3": (("oscillation", 0.52),),
    "w0": (("wrong_init", 0.0),),
    "n1": (("data_repeated", 0.4), ("weight_corruption", 0.75)),
    "n2": (("label_shift", 0.4), ("scheduler_x10", 0.75)),
    "n3": (("nan_input", 0.3), ("exploding_activations", 0.5), ("inf_loss", 0.85)),
    "n4": (("detached", 0.35), ("fp16_underflow", 0.75)),
    "n5": (("sign_flip", 0.35), ("rate_alternates", 0.75)),
    "n6": (("scale_not_undone", 0.3), ("momentum_high", 0.55)),
    "n7": (("schedule_restart", 0.6),),
}  # fmt: skip
# Varied by the seed: a detector must not learn that a kind always lasts as long.
VARIED: Final = ("lr_spike", "corrupt_labels", "corrupt_inputs", "nan_tensor", "scheduler_x10")
FLUSH_STEPS: Final = 128
Parts = tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]


def plan(job: Job, run: str, steps: int, seed: int) -> list[Injection]:
    """The faults of one run; seed and names alone decide where they begin."""
    rng = random.Random(f"{run} {seed} {job.place}")
    names = [name for name, _ in job.model().named_parameters()]
    found = []
    for kind, share in PLANS[run]:
        if kind == "dead":
            kind = "dead_relu" if job.place.dead_to < 0 else "saturate"  # noqa: PLW2901 - the job's kind of it
        start = int(steps * share * rng.uniform(0.88, 1.12)) if share else 0
        length = LENGTHS[kind] + (rng.randint(0, 2) if kind in VARIED else 0)
        end = min(steps, start + length) if LENGTHS[kind] else steps
        found.append(Injection(kind, start, end, job.place, rng.choice(names)))
    return found


def train(
    job: Job, faults: Sequence[Injection], *, steps: int, seed: int, watch: Any = None
) -> None:
    """Train one job with its faults; ``watch`` makes the Watch from model, optimizer and scaler."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed + 1)
    model = job.model().to(job.dtype)
    optimizer = job.optimizer(list(model.parameters()))
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**24, growth_interval=100, enabled=job.scaler
    )
    watched = watch(model, optimizer, scaler if job.scaler else None)
    for step in range(steps):
        active = [fault for fault in faults if fault.active(step)]
        x, y = _batch(job, active, (step, seed), generator)
        for fault in active:
            fault.weights(step, model)
            x, y = fault.batch(step, x, y, generator)
        _set_rate(job, optimizer, active, step, steps)
        told = _update(job, (model, optimizer, scaler), active, step, (x, y))
        watched.log(loss=told)
        for fault in faults:
            fault.momentum(optimizer, on=fault.active(step + 1))
        if step % FLUSH_STEPS == 0:
            watched.flush(10)
    watched.close(timeout=20)


def _batch(
    job: Job, active: Sequence[Injection], at: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The batch of a step; while data repeat, that of the step at which they began to."""
    step, seed = at
    repeated = next((fault for fault in active if fault.kind == "data_repeated"), None)
    if repeated is None:
        return job.batch(step, generator)
    return job.batch(repeated.start, torch.Generator().manual_seed(seed + 2))


def _update(
    job: Job, parts: Parts, active: Sequence[Injection], step: int, batch: tuple[Tensor, Tensor]
) -> Tensor:
    """Forward, backward, update; return the loss that the loop tells."""
    (model, optimizer, scaler), (x, y) = parts, batch
    with torch.autocast("cpu", torch.float16, enabled=job.scaler):
        out = model(x.to(job.dtype) if x.is_floating_point() else x)
    loss = job.criterion(out.float(), y)
    told = loss.detach()
    for fault in active:
        loss = fault.loss(step, loss)
        told = loss.detach() if fault.kind == "inf_loss" else told
    if not any(fault.kind == "no_zero_grad" for fault in active):
        optimizer.zero_grad(set_to_none=False)
    scaler.scale(loss).backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for fault in active:
        fault.gradients(named)
    scaler.step(optimizer)
    scaler.update()
    return told


def _set_rate(
    job: Job, optimizer: torch.optim.Optimizer, active: Sequence[Injection], step: int, steps: int
) -> None:
    for group in optimizer.param_groups:
        rate = group.setdefault("base", group["lr"]) * job.schedule(step, steps)
        for fault in active:
            rate *= fault.rate(step)
        group["lr"] = rate


def record(
    job: Job, faults: Sequence[Injection], *, steps: int, seed: int, histogram_every: int = 10
) -> list[Recorded]:
    """Train one job under the client and return what each of its ranks reported."""
    with tempfile.TemporaryDirectory() as spool:

        def watch(model: nn.Module, optimizer: Any, scaler: Any) -> gradwatch.Watch:
            return gradwatch.watch(
                model,
                optimizer,
                clip=job.clip,
                mode="offline",
                spool=spool,
                run="recording",
                nonfinite="keep" if job.scaler else "skip",
                scaler=scaler,
                histogram_every=histogram_every,
            )

        train(job, faults, steps=steps, seed=seed, watch=watch)
        return read_spools(Path(spool))


def labels(recorded: Recorded, faults: Sequence[Injection]) -> list[dict[str, Any]]:
    """The labels of these faults, as they show in the recording."""
    names = [tensor.name for tensor in recorded.manifest.tensors]
    sizes = np.array([tensor.numel for tensor in recorded.manifest.tensors])
    columns = {"sizes": sizes, **recorded.columns}
    return [label(f.kind, CLASSES[f.kind], (f.start, f.end), columns, names) for f in faults]


def runs_of(job: Job) -> list[str]:
    """Runs that make sense for a job."""
    useless = {"w0"} if not job.deep else set[str]()
    if job.scaler:  # it skips a step with NaN as it skips one with too high a scale
        useless |= {"t2", "n3", "n4", "n6"}
    if not job.place.dead:
        useless.add("p2")
    return [run for run in PLANS if run not in useless]


def main(write: Callable[[str], None] = print) -> None:
    """Command line."""
    every_job = {name: job for jobs in SETS.values() for name, job in jobs.items()}
    parser = argparse.ArgumentParser(description="Record gradient traces of small jobs.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--set", choices=sorted(SETS), default="basic")
    parser.add_argument("--jobs", nargs="*", choices=sorted(every_job), help="instead of a set")
    parser.add_argument("--runs", nargs="*", choices=list(PLANS), help="default: all")
    parser.add_argument("--steps", type=int, default=440)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--histogram-every", type=int, default=10)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    logging.getLogger("gradwatch").setLevel(logging.ERROR)
    for name in options.jobs or SETS[options.set]:
        job = every_job[name]
        for run in options.runs or runs_of(job):
            seed = 10 * options.seed + list(PLANS).index(run)
            trace = f"{name}.{run}-{options.seed}"
            if (options.directory / f"{trace}.json").exists():
                continue
            began = time.process_time()
            faults = plan(job, run, options.steps, seed)
            with contextlib.redirect_stderr(None):  # the client's lines at start and end
                (recorded,) = record(
                    job,
                    faults,
                    steps=options.steps,
                    seed=seed,
                    histogram_every=options.histogram_every,
                )
            told = labels(recorded, faults)
            save_trace(
                options.directory, trace, recorded.columns, recorded.manifest, told, seed=seed
            )
            shown = ", ".join(
                f"{f['kind']} {'/'.join(f['visible']) or 'not visible'}" for f in told
            )
            write(f"{trace}: {time.process_time() - began:.0f} s CPU; {shown or 'healthy'}")


if __name__ == "__main__":
    main()
