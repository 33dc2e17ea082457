"""``gradwatch demo``: see the whole path on one machine in under three minutes."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import torch
import typer

from gradwatch_cli.demo.progress import training_progress
from gradwatch_cli.demo.service import DemoService, running_service
from gradwatch_cli.demo.summary import Summary, collect
from gradwatch_cli.demo.text import read_text
from gradwatch_cli.demo.training import Learner, train
from gradwatch_cli.demo.troubles import Troubles

__all__ = ["command"]

FEWEST_STEPS = 160  # the detectors need a calm stretch before each trouble


def command(
    steps: Annotated[
        int, typer.Option(min=FEWEST_STEPS, max=100_000, help="Optimizer steps of each training.")
    ] = 500,
    *,
    compare: Annotated[
        bool, typer.Option(help="Train the same seed without clipping beside it.")
    ] = True,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Leave the page up until Ctrl-C.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")] = 0,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the service; 0 takes a free one.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train a small LSTM on real text with injected trouble and see what the service saw.

    Starts a service of its own on this machine, trains a two-layer LSTM on the sources of Python's standard library with zero-centred clipping, and does two things to it: a learning rate 30 times too large, and one corrupted batch. Nothing is left running.
    """
    with _ends_on_sigterm(), running_service(port) as service:
        summary = _run(service, steps=steps, compare=compare, seed=seed)
        if as_json:
            print(json.dumps(summary.to_json()))
        else:
            _print(summary, keep_serving=keep_serving)
        sys.stdout.flush()
        if keep_serving:
            _wait_for_ctrl_c(service)


def _run(service: DemoService, *, steps: int, compare: bool, seed: int) -> Summary:
    # The demo says everything itself; the lines a watch prints would tear its progress bar.
    os.environ["GRADWATCH_QUIET"] = "1"
    # One core for the training, one for the service: a second thread gains little on a model this small
    # and loses a lot as soon as the machine has anything else to do.
    torch.set_num_threads(1)
    text, troubles = read_text(), Troubles.within(steps)
    _say(f"service at {service.url}; {len(text.train):,} characters of {text.files} Python files")
    for sentence in troubles.sentences():
        _say(f"to come at {sentence}")
    learners = [Learner.start("demo-clipped", clipped=True, seed=seed, url=service.url)]
    if compare:
        learners.append(Learner.start("demo-unclipped", clipped=False, seed=seed, url=service.url))
    parameters = sum(p.numel() for p in learners[0].model.parameters())
    _say(f"two-layer LSTM, {parameters:,} parameters, {steps} steps")
    with training_progress(steps) as on_step:
        outcomes = train(learners, text, troubles, steps=steps, seed=seed, on_step=on_step)
    return collect(service, outcomes, troubles)


def _print(summary: Summary, *, keep_serving: bool) -> None:
    print("\n" + "\n".join(summary.lines()))
    if not keep_serving:
        print("\nThe service ends with the demo; --keep-serving leaves it up for these addresses.")


def _wait_for_ctrl_c(service: DemoService) -> None:
    _say(f"still serving at {service.url} until Ctrl-C")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        _say("stopped")


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into the exception of Ctrl-C, so that the service is ended in every case."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
