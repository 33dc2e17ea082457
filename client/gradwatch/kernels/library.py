"""Finds the compiled kernel, and makes sure that it does what it should before it is used."""

import ctypes
import functools
import math
import sysconfig
from pathlib import Path

import torch

from gradwatch.errors import KernelError
from gradwatch.kernels.base import Gradients, Histogram, Row, new_rows
from gradwatch.kernels.cpu import VERSION, Cpu
from gradwatch.kernels.reference import Reference
from gradwatch.kernels.sampling import BINS

__all__ = ["PATH", "load", "load_cpu"]

PATH = Path(__file__).with_name("_cpu.so")

# Enough for several blocks of the kernel and a tail.
_TEST_SIZE = 9001


@functools.cache
def load_cpu() -> Cpu | KernelError:
    """Return the compiled kernel, or why there is none. Looks once per process."""
    try:
        kernel = load(PATH)
        self_test(kernel)
    except KernelError as error:
        return error
    return kernel


def load(path: Path) -> Cpu:
    """Open a compiled kernel.

    Raises:
        KernelError: It is not there, cannot be opened, or belongs to another version.
    """
    if not path.exists():
        raise KernelError(
            "the compiled kernel is not part of this installation: there was no C compiler when it "
            "was built. Install one and reinstall gradwatch to clip several times faster on CPUs."
        )
    try:
        library = ctypes.CDLL(str(path))
        version = library.gw_version()
    except (OSError, AttributeError) as error:
        raise KernelError(f"the compiled kernel cannot be loaded: {error}") from error
    if version != VERSION:
        raise KernelError(
            f"the compiled kernel has version {version}, this gradwatch needs {VERSION}: reinstall it."
        )
    return Cpu(library, _parallel_starter())


def self_test(kernel: Cpu) -> None:
    """Compare the kernel with the reference on numbers of every kind.

    Raises:
        KernelError: They differ in a gradient's bits or in a statistic.
    """
    for dtype in kernel.dtypes:
        tests = [_test_gradient(dtype), _test_gradient(dtype)[:7] * 0.5]
        for limit, zero in ((1.0, False), (0.1, True), (math.inf, False)):
            rows, grads, counts = [], [], []
            for candidate in (kernel, Reference()):
                mine = Gradients.of([t.clone() for t in tests])
                row = new_rows(2, torch.device("cpu"))
                limits = torch.full((2,), limit, dtype=torch.float64)
                counts.append(torch.zeros(2, BINS, dtype=torch.int64))
                counted = Histogram(counts[-1], every=2, phase=1)
                candidate.measure_(mine, limits, row, zero_nonfinite=zero, histogram=counted)
                candidate.scale_(mine, limits.new_tensor([0.37, 1.0]), row)
                rows.append(row)
                grads.append(mine)
            for row in rows:  # elements cancel in a mean: its error is one of the elements'
                row[Row.MEAN] += row[Row.MAX_ABS]
            if not torch.equal(*counts):
                raise KernelError(
                    f"the compiled kernel failed its self-test ({dtype}, histogram): "
                    "please report this machine."
                )
            if not _same(grads[0], grads[1]) or not torch.allclose(rows[0], rows[1], 1e-6, 1e-300):
                worst = (rows[0] - rows[1]).abs().nan_to_num(torch.inf).amax(1).argmax()
                raise KernelError(
                    f"the compiled kernel failed its self-test ({dtype}, limit {limit}, "
                    f"row {Row(int(worst)).name}): please report this machine."
                )


def _test_gradient(dtype: torch.dtype) -> torch.Tensor:
    # Not random: the same numbers everywhere, of both signs, over the range of every dtype.
    index = torch.arange(_TEST_SIZE, dtype=torch.float64)
    grad = (torch.sin(index * 12.9898) * torch.exp(torch.cos(index * 0.37) * 6)).to(dtype)
    grad[::97] = 0.0
    grad[-2:] = torch.tensor([math.inf, math.nan], dtype=dtype)
    return grad


def _same(a: Gradients, b: Gradients) -> bool:
    pairs = zip(a.tensors, b.tensors, strict=True)
    return all(x is not None and y is not None and _same_bits(x, y) for x, y in pairs)


def _same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(0.0), y.nan_to_num(0.0))


def _parallel_starter() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP library that torch has loaded, if any.

    The kernel starts no threads of its own: it works in the ones that torch already has.
    """
    if sysconfig.get_platform().split("-")[0] != "linux":
        return None
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    names = ("libgomp", "libiomp5", "libomp")
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split()) == 6}
    for path in sorted(p for p in paths if Path(p).name.startswith(names)):
        try:
            starter = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(starter, ctypes.c_void_p).value
    return None
