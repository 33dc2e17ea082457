"""Finds the kernels of CPUs and GPUs, and makes sure that they do what they should before they are used."""

import ctypes
import functools
import math
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

from gradwatch.errors import KernelError
from gradwatch.kernels.base import Gradients, Histogram, Kernel, Row, new_rows
from gradwatch.kernels.cpu import VERSION, Cpu
from gradwatch.kernels.reference import Reference
from gradwatch.kernels.sampling import BINS

__all__ = ["PATH", "load", "load_cpu", "load_cuda", "self_test"]

PATH = Path(__file__).with_name("_cpu.so")

# Enough for several blocks of the kernel and a tail.
_TEST_SIZE = 9001


@functools.cache
def load_cpu() -> Cpu | KernelError:
    """Return the compiled kernel, or why there is none. Looks once per process."""
    try:
        kernel = load(PATH)
        self_test(kernel, kernel.dtypes, torch.device("cpu"))
    except KernelError as error:
        return error
    return kernel


@functools.cache
def load_cuda(device: torch.device) -> Kernel | KernelError:
    """Return the GPU kernel, or why there is none. Looks once per device, and waits for it then."""
    try:
        from gradwatch.kernels.cuda import Cuda  # noqa: PLC0415 -- imports Triton
    except ImportError as error:
        return KernelError(
            f"the GPU kernel needs Triton, which cannot be imported ({error}): pip install triton, "
            "to clip several times faster on GPUs."
        )
    kernel = Cuda()
    waiting = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("default")  # comparing means reading values back
        self_test(kernel, kernel.dtypes, device)
    except KernelError as error:
        return error
    except Exception as error:  # noqa: BLE001 -- compilers and drivers fail in their own ways
        return KernelError(f"the GPU kernel does not run on {device}: {error}")
    finally:
        torch.cuda.set_sync_debug_mode(waiting)
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


def self_test(kernel: Kernel, dtypes: Sequence[torch.dtype], device: torch.device) -> None:
    """Compare a kernel with the reference on numbers of every kind.

    Raises:
        KernelError: They differ in a gradient's bits or in a statistic.
    """
    for dtype in dtypes:
        whole = _test_gradient(dtype).to(device)
        tests = [whole, whole[:7] * 0.5]
        for limit, zero in ((1.0, False), (0.1, True), (math.inf, False)):
            rows, grads, counts = [], [], []
            for candidate in (kernel, Reference()):
                mine = Gradients.of([t.clone() for t in tests])
                row = new_rows(2, device)
                limits = torch.full_like(row[0], limit)
                counts.append(torch.zeros(2, BINS, dtype=torch.int64, device=device))
                counted = Histogram(counts[-1], every=2, phase=1)
                candidate.measure_(mine, limits, row, zero_nonfinite=zero, histogram=counted)
                candidate.scale_(mine, limits.new_tensor([0.37, 1.0]), row)
                rows.append(row)
                grads.append(mine)
            for row in rows:  # elements cancel in a mean: its error is one of the elements'
                row[Row.MEAN] += row[Row.MAX_ABS]
            if not torch.equal(*counts):
                raise KernelError(
                    f"the {kernel.name} kernel failed its self-test ({dtype}, histogram): "
                    "please report this machine."
                )
            if not _same(grads[0], grads[1]) or not torch.allclose(rows[0], rows[1], 1e-6, 1e-300):
                worst = (rows[0] - rows[1]).abs().nan_to_num(torch.inf).amax(1).argmax()
                raise KernelError(
                    f"the {kernel.name} kernel failed its self-test ({dtype}, limit {limit}, "
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
