"""What watching costs a training: time and CPU per step, and how long the interpreter is held.

    python -m benchmarks overhead [--rounds 3] [--steps 150] [--only bare,gradwatch]

Each way of watching trains the same model in a process of its own; the ways take turns, round by
round, so that a busy machine is busy for all of them. Ways whose package is not installed are left
out: ``pip install wandb tensorboard mlflow-skinny trackio`` brings them in. They log what people log
with them: the norm of every gradient, read tensor by tensor (wandb: its own ``watch``).

Columns: median step; what that adds to ``torch clip``, the median over the rounds of the difference
within a round; CPU of all threads per step; the longest that a thread spinning beside the training
was kept from running in 999 of 1000 of its turns, which shows who holds the interpreter.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.server_process import free_port
from torch import Tensor, nn

import gradwatch

LAYERS, WIDTH, BATCH, LIMIT = 32, 96, 64, 0.1
Log = Callable[[int, Tensor], None]
Way = Callable[[nn.Module, torch.optim.Optimizer], tuple[Log, Callable[[], None]]]


def norms(model: nn.Module) -> dict[str, float]:
    """One read per tensor, as hand-written loops do it."""
    return {f"norm/{n}": float(p.grad.norm()) for n, p in model.named_parameters()}


def bare(*_: Any) -> tuple[Log, Callable[[], None]]:
    return lambda *_: None, lambda: None


def torch_clip(model: nn.Module, _: Any) -> tuple[Log, Callable[[], None]]:
    parameters = list(model.parameters())
    return lambda *_: nn.utils.clip_grad_value_(parameters, LIMIT), lambda: None  # type: ignore[return-value] # its value is not used


def gradwatch_to(url: str, **options: Any) -> Way:
    def way(model: nn.Module, optimizer: Any) -> tuple[Log, Callable[[], None]]:
        watch = gradwatch.watch(
            model, optimizer, clip=gradwatch.clip.value(LIMIT), url=url, **options
        )
        return lambda _, loss: watch.log(loss=loss), lambda: watch.close(timeout=5.0)

    return way


def with_wandb(model: nn.Module, _: Any) -> tuple[Log, Callable[[], None]]:
    wandb = importlib.import_module("wandb")
    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), settings={"silent": True})
    run.watch(model, log="gradients", log_freq=1)

    def log(step: int, loss: Tensor) -> None:
        nn.utils.clip_grad_value_(model.parameters(), LIMIT)
        run.log({"loss": loss.item()}, step=step)

    return log, run.finish


def with_tensorboard(model: nn.Module, _: Any) -> tuple[Log, Callable[[], None]]:
    tensorboard = importlib.import_module("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(tempfile.mkdtemp())

    def log(step: int, loss: Tensor) -> None:
        for name, norm in norms(model).items():
            writer.add_scalar(name, norm, step)
        writer.add_scalar("loss", loss.item(), step)
        nn.utils.clip_grad_value_(model.parameters(), LIMIT)

    return log, writer.close


def with_mlflow(model: nn.Module, _: Any) -> tuple[Log, Callable[[], None]]:
    mlflow = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(f"file://{tempfile.mkdtemp()}")
    mlflow.set_experiment("overhead")
    mlflow.start_run()

    def log(step: int, loss: Tensor) -> None:
        values = norms(model) | {"loss": loss.item()}
        mlflow.log_metrics(values, step=step, synchronous=False)
        nn.utils.clip_grad_value_(model.parameters(), LIMIT)

    return log, mlflow.end_run


def with_trackio(model: nn.Module, _: Any) -> tuple[Log, Callable[[], None]]:
    trackio = importlib.import_module("trackio")
    trackio.init(project="overhead")

    def log(step: int, loss: Tensor) -> None:
        trackio.log(norms(model) | {"loss": loss.item()}, step=step)
        nn.utils.clip_grad_value_(model.parameters(), LIMIT)

    return log, trackio.finish


WAYS: dict[str, tuple[str | None, Callable[[str], Way]]] = {
    "bare": (None, lambda _: bare),
    "torch clip": (None, lambda _: torch_clip),
    "gradwatch": (None, gradwatch_to),
    "gradwatch, service down": (None, lambda _: gradwatch_to("http://127.0.0.1:9")),
    "gradwatch, disabled": (None, lambda _: gradwatch_to("http://127.0.0.1:9", mode="disabled")),
    "wandb.watch, offline": ("wandb", lambda _: with_wandb),
    "TensorBoard": ("tensorboard", lambda _: with_tensorboard),
    "MLflow, asynchronous": ("mlflow", lambda _: with_mlflow),
    "trackio": ("trackio", lambda _: with_trackio),
}


class Spinner:
    """A thread that wants to run all the time and notes how long it was kept from it."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._over = False
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def _spin(self) -> None:
        before = time.perf_counter()
        while not self._over:
            time.sleep(0.001)
            now = time.perf_counter()
            self.gaps.append(now - before - 0.001)
            before = now

    def __enter__(self) -> "Spinner":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()


def work(way: str, url: str, steps: int) -> dict[str, float]:
    """Train in one way; what it cost."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(LAYERS)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    log, end = WAYS[way][1](url)(model, optimizer)
    seconds: list[float] = []
    warm = max(10, steps // 5)
    with Spinner() as spinner:
        for step in range(warm + steps):
            if step == warm:
                spinner.gaps.clear()
                before = time.process_time()
            begun = time.perf_counter()
            loss = model(torch.randn(BATCH, WIDTH)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if "gradwatch" in way:
                optimizer.step()
                log(step, loss)
            else:
                log(step, loss)
                optimizer.step()
            seconds.append(time.perf_counter() - begun)
        cpu = (time.process_time() - before) / steps
    end()
    gaps = sorted(spinner.gaps)
    return {
        "step": statistics.median(seconds[warm:]),
        "cpu": cpu,
        "held": gaps[int(0.999 * (len(gaps) - 1))],
    }


def measure(way: str, url: str, steps: int) -> dict[str, float]:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {
            "GRADWATCH_QUIET": "1",
            "GRADWATCH_DIR": directory,
            "TRACKIO_DIR": directory,
            "WANDB_SILENT": "true",
            "MLFLOW_ALLOW_FILE_STORE": "true",
        }
        command = [sys.executable, "-m", "benchmarks.overhead", "--work", way]
        command += ["--url", url, "--steps", str(steps)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr.strip().splitlines()[-1:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def wait_until_ready(url: str) -> None:
    """Return once the service answers."""
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=1):  # noqa: S310 - our own address
            return
        time.sleep(0.1)
    raise SystemExit("the service did not start")


@contextlib.contextmanager
def service() -> Any:
    """A real service on a free port."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "gradwatch_cli", "serve", "--port", str(port)]
        command += ["--store", f"sqlite:///{Path(directory) / 'overhead.db'}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(url)
            yield url
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", default="")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.work, options.url, options.steps)))
        return
    chosen = [way for way in options.only.split(",") if way] or list(WAYS)
    ways = [w for w in chosen if WAYS[w][0] is None or importlib.util.find_spec(str(WAYS[w][0]))]
    results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with service() as url:
        for _ in range(options.rounds):
            for way in ways:
                results[way].append(measure(way, url, options.steps))
    report(results, options.steps)


def report(results: dict[str, list[dict[str, float]]], steps: int) -> None:
    """Print one row per way."""
    count = 2 * LAYERS
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, torch {torch.__version__}; "
        f"{count} tensors, {steps} steps, {len(next(iter(results.values())))} rounds"
    )
    print("| way | step, ms | added to torch clip, us | CPU, ms/step | held, ms (p99.9) |")
    print("|---|---|---|---|---|")
    against = results.get("torch clip", [])
    for way, rounds in results.items():
        step = statistics.median(r["step"] for r in rounds)
        pairs = zip(rounds, against, strict=True) if against else []
        added = [1e6 * (a["step"] - b["step"]) for a, b in pairs]
        shown = f"{statistics.median(added):.0f}" if added else ""
        cpu = statistics.median(r["cpu"] for r in rounds)
        held = statistics.median(r["held"] for r in rounds)
        print(f"| {way} | {1e3 * step:.2f} | {shown} | {1e3 * cpu:.2f} | {1e3 * held:.1f} |")


if __name__ == "__main__":
    main()
