"""Catches code that reads a tensor back to the host, on a machine without an accelerator.

Three nets, since each has holes: meta tensors raise on most reads by themselves; the dispatch mode
sees reads below Python (``_foreach_clamp_`` with a 0-dim tensor); the function mode sees what never
reaches dispatch on a CPU tensor (``tolist``, ``numpy``, ``cpu``).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["HostReadError", "Operations", "no_host_sync"]

_READS = {
    "_local_scalar_dense",
    "_unique2",
    "allclose",
    "equal",
    "is_nonzero",
    "item",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "repeat_interleave",
}
_PYTHON_READS = {
    "__array__",
    "__bool__",
    "__float__",
    "__format__",
    "__index__",
    "__int__",
    "__repr__",
    "cpu",
    "item",
    "numpy",
    "tolist",
}


class HostReadError(AssertionError):
    """A tensor's value was about to be read by the host."""


class Operations(TorchDispatchMode):
    """Counts operations by name and refuses those that wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.counts[name] += 1
        if name in _READS:
            raise HostReadError(f"{name} waits for the device")
        if name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype is torch.bool for i in args[1] or ()
        ):
            raise HostReadError(f"{name} with a mask waits for the device")
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _PYTHON_READS:
            raise HostReadError(f"Tensor.{func.__name__} reads a value")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_sync() -> Iterator[Operations]:
    """Fail on any read of a tensor's value inside; yields the operations that ran."""
    with _Functions(), Operations() as operations:
        yield operations
