"""A training job that ends in the way its argument names. Run by test_every_end_of_a_job.py."""

import multiprocessing
import os
import signal
import sys
import threading
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradwatch
from gradwatch import shutdown

STEPS = 40
watched: set[int] = set()
main = threading.main_thread().ident


def audit(event: str, arguments: tuple[object, ...]) -> None:
    """Note what the training thread does with sockets and files once it is being watched."""
    if not watched or threading.get_ident() != main or os.getpid() not in watched:
        return
    # Data loaders talk to their workers over sockets too, but not over the internet's kind.
    network = event == "socket.getaddrinfo" or (
        event == "socket.connect" and isinstance(arguments[1], tuple)
    )
    if network or (event == "open" and "spool" in str(arguments[0])):
        print("TRAINING THREAD:", event, arguments, flush=True)


def child_reports() -> None:
    """In a forked worker the inherited Watch must neither report nor hang."""
    step()
    assert watch.health().delivery.state == "closed"
    assert not [t for t in threading.enumerate() if t.name == "gradwatch"]
    watch.close(timeout=1.0)


def step() -> None:
    loss = model(torch.randn(3, 4)).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    watch.log(loss=loss)


ending = sys.argv[1]
torch.set_num_threads(1)
sys.addaudithook(audit)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
watch = gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(0.1), run="r")
watched.add(os.getpid())
data = TensorDataset(torch.arange(STEPS))
workers = 2 if ending == "falls off the end" else 0
for number, _ in enumerate(DataLoader(data, batch_size=1, num_workers=workers)):
    step()
    if workers and number == 20:
        child = multiprocessing.get_context("fork").Process(target=child_reports)
        child.start()
        child.join(20)
        print("CHILD", child.exitcode, flush=True)
if ending == "raises":
    raise ValueError("the job's own fault")
if ending == "is terminated":
    shutdown.handle_signals()
    print("READY", flush=True)
    while True:
        time.sleep(0.1)
if ending == "terminates itself from a chained handler":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    shutdown.handle_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
