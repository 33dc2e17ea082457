"""Kernels by name, and which one a device gets."""

import logging
import os

import torch

from gradwatch.errors import KernelError
from gradwatch.kernels.base import Gradients, Histogram, Kernel, Row, accumulator, new_rows
from gradwatch.kernels.glance import Glance
from gradwatch.kernels.library import load_cpu, load_cuda
from gradwatch.kernels.reference import Reference, round_down

__all__ = [
    "KERNELS",
    "Glance",
    "Gradients",
    "Histogram",
    "Kernel",
    "Reference",
    "Row",
    "accumulator",
    "check_name",
    "choose",
    "new_rows",
    "round_down",
]

KERNELS = ("auto", "reference", "cpu", "cuda")


def check_name(name: str) -> str:
    """Return the kernel asked for: the argument, or GRADWATCH_KERNEL where that says ``auto``.

    Raises:
        KernelError: There is no such kernel.
    """
    if name == "auto":
        name = os.environ.get("GRADWATCH_KERNEL", "").strip() or "auto"
    if name not in KERNELS:
        raise KernelError(f"kernel {name!r}: choose one of {', '.join(KERNELS)}.")
    return name


def choose(name: str, device: torch.device) -> tuple[Kernel, str | None]:
    """Return the kernel for a device and, where ``auto`` had to fall back, the reason.

    Args:
        name: One of :data:`KERNELS`. ``auto`` takes GRADWATCH_KERNEL if that is set, else the
            fastest that works.
        device: Where the gradients are.

    Raises:
        KernelError: A kernel asked for by name cannot run on this device or machine.
    """
    name = check_name(name)
    if name == "reference":
        return Reference(), None
    if name in ("cpu", "cuda") and name != device.type:
        raise KernelError(f"kernel {name!r} cannot clip gradients on {device}; use 'auto'.")
    if device.type not in ("cpu", "cuda"):
        return Reference(), None
    found = load_cpu() if device.type == "cpu" else load_cuda(device)
    if not isinstance(found, KernelError):
        return found, None
    if name != "auto":
        raise KernelError(str(found)) from found
    logging.getLogger("gradwatch").warning("using the reference kernel: %s", found)
    return Glance() if device.type == "cpu" else Reference(), str(found)
