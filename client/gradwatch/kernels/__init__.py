"""Kernels by name, and which one a device gets."""

import os

import torch

from gradwatch.errors import KernelError
from gradwatch.kernels.base import Gradients, Kernel, Row, new_rows
from gradwatch.kernels.reference import Reference, round_down

__all__ = [
    "KERNELS",
    "Gradients",
    "Kernel",
    "Reference",
    "Row",
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
    if name in ("cpu", "cuda"):
        raise KernelError(f"kernel {name!r} is not part of this build; use 'auto' or 'reference'.")
    return Reference(), None
