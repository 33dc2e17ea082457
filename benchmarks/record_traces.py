"""Record gradient traces of small jobs, healthy or with labelled faults.

    python -m benchmarks.record_traces DIRECTORY --steps 200000            # one healthy run per job
    python -m benchmarks.record_traces DIRECTORY --steps 500 --faults      # one run per job and fault

Writes ``<job>.<run>.npz`` and ``.json`` in the format that ``benchmarks.detectors`` reads. Faults
are of kinds that are rare in public collections: the same data again, shifted labels, a bug in
the schedule, activations that explode behind a norm layer.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.recorded_jobs import JOBS, Job
from torch import Tensor, nn

FAULT_CLASSES = {
    "data_repeated": "exploding",
    "label_shift": "exploding",
    "scheduler_bug": "exploding",
    "exploding_activations": "exploding",
    "frozen_layer": "vanishing",
    "nan_tensor": "nonfinite",
}


@dataclass
class Fault:
    """A fault of one kind, active in the half-open interval of steps."""

    kind: str
    start: int
    end: int


@dataclass
class Recording:
    """Columns as they grow; one entry per step."""

    columns: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, **values: Any) -> None:
        """Append one step."""
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)


def record(job: Job, steps: int, seed: int, fault: Fault | None) -> tuple[Recording, list[str]]:
    """Train and measure every gradient before the optimizer step."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed + 1)
    model = job.model().to(job.dtype)
    names = [name for name, _ in model.named_parameters()]
    parameters = [p for _, p in model.named_parameters()]
    optimizer = job.optimizer(parameters)
    base = optimizer.param_groups[0]["lr"]
    recording, previous = Recording(), None
    for step in range(steps):
        active = fault.kind if fault and fault.start <= step < fault.end else ""
        rate = base * job.schedule(step, steps) * (30.0 if active == "scheduler_bug" else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = fault.start if fault and active == "data_repeated" else step
        if fault and active == "data_repeated":
            generator.manual_seed(seed + 2)
        x, y = job.batch(at, generator)
        if active == "label_shift":
            y = (y + 3) % 8
        if active == "exploding_activations":
            _scale_weights(model, 1.15)
        loss = nn.functional.cross_entropy(model(x.to(job.dtype)).float(), y)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        grads = [p.grad for p in parameters if p.grad is not None]
        _inject(active, grads)
        flat = torch.cat([g.flatten().float() for g in grads])
        recording.add(**_measure(grads, flat, previous), loss=loss.item(), lr=rate)
        previous = torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
        if math.isfinite(float(flat.sum())):
            optimizer.step()
    recording.columns["sizes"] = [p.numel() for p in parameters]
    return recording, names


def _scale_weights(model: nn.Module, factor: float) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(factor)


def _inject(active: str, grads: list[Tensor]) -> None:
    if active == "nan_tensor":
        grads[-2].view(-1)[0] = math.nan
    if active == "frozen_layer":
        grads[2].zero_()


def _measure(grads: list[Tensor], flat: Tensor, previous: Tensor | None) -> dict[str, Any]:
    finite = [torch.nan_to_num(g.float(), nan=0.0, posinf=0.0, neginf=0.0) for g in grads]
    norms = torch.stack(torch._foreach_norm(finite)).numpy()
    bad = np.array([int((~torch.isfinite(g)).sum()) for g in grads])
    total = float(np.sqrt((norms.astype(np.float64) ** 2).sum()))
    cosine = 0.0
    if previous is not None and not bad.any():
        length = float(previous.norm()) * total
        cosine = float(flat @ previous) / length if length > 0 else 0.0
    return {
        "norm": norms,
        "zeros": np.array([int((g == 0).sum()) for g in grads]),
        "nonfinite": bad,
        "gnorm": math.nan if bad.any() else total,
        "gcos": cosine,
    }


def save(
    directory: Path, name: str, recording: Recording, names: list[str], fault: Fault | None
) -> None:
    """Write one trace with its label."""
    job, run = name.split(".")
    columns = recording.columns
    arrays = {
        key: np.array(value, np.int64 if key in {"zeros", "nonfinite", "sizes"} else np.float32)
        for key, value in columns.items()
    }
    np.savez_compressed(directory / f"{name}.npz", **arrays)  # type: ignore[arg-type]  # numpy types the keyword arguments as a flag
    steps = len(columns["loss"])
    labels = [] if fault is None else [_label(fault, arrays, names, steps)]
    meta = {"job": job, "run": run, "steps": steps, "names": names, "faults": labels}
    (directory / f"{name}.json").write_text(json.dumps(meta, indent=1) + "\n")


def _label(fault: Fault, arrays: dict[str, Any], names: list[str], steps: int) -> dict[str, Any]:
    """What the fault really did to the gradients, measured as the public traces measure it."""
    before = slice(max(0, fault.start - 40), fault.start)
    during = slice(fault.start, fault.end)
    norm = np.sqrt((arrays["norm"].astype(np.float64) ** 2).sum(axis=1))
    usual = float(np.median(norm[before]))
    visible = []
    if norm[during].max() >= 3 * usual:
        visible.append("norm_up")
    if norm[during].max() <= usual / 3:
        visible.append("norm_down")
    bad = arrays["nonfinite"][during].any(axis=0)
    gone = (
        np.median(arrays["norm"][during], axis=0) < np.median(arrays["norm"][before], axis=0) / 100
    )
    affected = [n for n, hit in zip(names, bad | gone, strict=True) if hit]
    visible += ["nonfinite"] if bad.any() else ["tensors_vanished"] if gone.any() else []
    change = float(np.median(arrays["gcos"][during]) - np.median(arrays["gcos"][before]))
    visible += ["cos_rise"] if change >= 0.3 else ["cos_drop"] if change <= -0.3 else []
    return {
        "kind": fault.kind,
        "class": FAULT_CLASSES[fault.kind],
        "start": fault.start,
        "end": fault.end,
        "aftermath_end": _aftermath(norm, arrays["loss"], fault, steps),
        "tensors": affected,
        "visible": visible,
    }


def _aftermath(norm: Any, loss: Any, fault: Fault, steps: int) -> int:
    before = slice(max(0, fault.start - 40), fault.start)
    limits = [(column, 1.5 * float(np.median(column[before]))) for column in (norm, loss)]
    for step in range(fault.end, steps):
        recent = slice(step, min(steps, step + 5))
        if all(float(np.median(column[recent])) <= limit for column, limit in limits):
            return step
    return steps


def main(write: Callable[[str], None] = print) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Record gradient traces of small jobs.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="*", default=sorted(JOBS), choices=sorted(JOBS))
    parser.add_argument("--faults", action="store_true", help="one run per job and fault kind")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for name in options.jobs:
        kinds = sorted(FAULT_CLASSES) if options.faults else [""]
        for at, kind in enumerate(kinds):
            start = options.steps // 2 + 7 * at
            length = {"nan_tensor": 2, "frozen_layer": 40, "scheduler_bug": 8}.get(kind, 12)
            fault = Fault(kind, start, start + length) if kind else None
            began = time.process_time()
            recording, names = record(JOBS[name], options.steps, options.seed, fault)
            run = f"{name}.{kind or 'healthy'}-{options.seed}"
            save(options.directory, run, recording, names, fault)
            write(f"{run}: {options.steps} steps, {time.process_time() - began:.0f} s CPU")


if __name__ == "__main__":
    main()
