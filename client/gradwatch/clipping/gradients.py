"""Gradients as kernels take them: real, strided, no two elements in one place; or a clear refusal."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from gradwatch.errors import GradientError
from gradwatch.kernels import Gradients

__all__ = ["Prepared", "prepare"]

_is_cpu, _is_cuda = attrgetter("is_cpu"), attrgetter("is_cuda")

_FLOATING = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


@dataclass(frozen=True, slots=True)
class Odd:
    """A gradient whose memory is not its elements one by one.

    Attributes:
        repeat: How often each stored element occurs in the gradient (expanded dimensions).
        implicit_zeros: Elements that are zero and not stored (sparse gradients).
    """

    repeat: int = 1
    implicit_zeros: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """Gradients of any number of devices, ready for kernels.

    Attributes:
        gradients: What kernels may change.
        numel: Elements of each gradient as the user sees it; 0 where there is none.
        odd: The exceptions, by index.
        devices: The devices that hold gradients, in order of first appearance.
    """

    gradients: Gradients
    numel: tuple[int, ...]
    odd: dict[int, Odd]
    devices: list[torch.device]

    def by_device(self) -> list[tuple[torch.device, Gradients]]:
        """Return each device with its gradients, None in the place of all others."""
        if len(self.devices) == 1:
            return [(self.devices[0], self.gradients)]
        tensors = self.gradients.tensors
        return [
            (d, Gradients.of([g if g is not None and g.device == d else None for g in tensors]))
            for d in self.devices
        ]


def prepare(grads: Sequence[Tensor | None], names: Sequence[str] | None = None) -> Prepared:
    """Check every gradient and take its memory. Changes nothing.

    Args:
        grads: Gradients; complex ones are taken as pairs of reals, sparse ones by their values.
        names: For messages.

    Raises:
        GradientError: A gradient that cannot be clipped in place; says which and why.
    """
    return _ordinary(grads) or _one_by_one(grads, names)


def _ordinary(grads: Sequence[Tensor | None]) -> Prepared | None:
    """Take gradients that are all there and dense, in a few passes; None if one is not.

    Every question costs some 50 ns per tensor, so each is asked of all of them by ``map``.
    """
    if not grads or set(map(type, grads)) != {Tensor} or len(set(map(id, grads))) != len(grads):
        return None
    tensors: Sequence[Tensor] = grads  # type: ignore[assignment]  # all are of type Tensor
    dtypes = tuple([g.dtype for g in tensors])
    devices = _devices(tensors)
    try:
        contiguous = all(map(Tensor.is_contiguous, tensors))
    except RuntimeError:  # sparse tensors refuse the question
        return None
    if not contiguous or not _FLOATING.issuperset(dtypes):
        return None
    numel = tuple(map(Tensor.numel, tensors))
    return Prepared(Gradients(tensors, numel, dtypes, contiguous=True), numel, {}, devices)


def _devices(tensors: Sequence[Tensor]) -> list[torch.device]:
    """Return every device; where all are alike one is asked, since making the answer takes 250 ns."""
    on_one_gpu = all(map(_is_cuda, tensors)) and len(set(map(Tensor.get_device, tensors))) == 1
    if on_one_gpu or all(map(_is_cpu, tensors)):
        return [tensors[0].device]
    return list(dict.fromkeys([g.device for g in tensors]))


def _one_by_one(grads: Sequence[Tensor | None], names: Sequence[str] | None) -> Prepared:
    tensors: list[Tensor | None] = list(grads)
    odd: dict[int, Odd] = {}
    seen: set[int] = set()
    devices: list[torch.device] = []
    numel = []
    for index, given in enumerate(grads):
        if given is None or id(given) in seen:  # one gradient of two tensors is clipped once
            tensors[index] = None
            numel.append(0)
            continue
        seen.add(id(given))
        if (
            type(given) is Tensor
            and given.layout is torch.strided
            and given.dtype in _FLOATING
            and given.is_contiguous()
        ):
            numel.append(given.numel())
        else:
            taken, odd[index] = _unusual(given, names[index] if names else f"#{index}")
            tensors[index] = taken
            numel.append(taken.numel() * odd[index].repeat + odd[index].implicit_zeros)
        if given.device not in devices:
            devices.append(given.device)
    return Prepared(Gradients.of(tensors), tuple(numel), odd, devices)


def _unusual(grad: Tensor, name: str) -> tuple[Tensor, Odd]:
    if hasattr(grad, "to_local"):
        raise GradientError(
            f"Gradient {name} is a DTensor: gradwatch.watch(model, optimizer) handles shards; "
            "elsewhere pass its to_local()."
        )
    implicit = 0
    if grad.layout is torch.sparse_coo:
        if not grad.is_coalesced():
            raise GradientError(
                f"Gradient {name} is sparse and uncoalesced: its repeated entries are not its "
                "elements. Set parameter.grad = parameter.grad.coalesce() before clipping."
            )
        values = grad._values()
        implicit = grad.numel() - values.numel()
        grad = values
    elif grad.layout is not torch.strided:
        raise GradientError(f"Gradient {name} has layout {grad.layout}: only dense and sparse_coo.")
    if grad.is_complex():
        grad, implicit = torch.view_as_real(grad.detach()), 2 * implicit
    if grad.dtype not in _FLOATING:
        allowed = ", ".join(sorted(str(d).removeprefix("torch.") for d in _FLOATING))
        raise GradientError(f"Gradient {name} has dtype {grad.dtype}; allowed: {allowed}, complex.")
    grad = grad.detach()
    full = grad.numel()
    for dim, (size, stride) in enumerate(zip(grad.shape, grad.stride(), strict=True)):
        if stride == 0 and size > 1:
            grad = grad.narrow(dim, 0, 1)
    if _overlaps(grad):
        raise GradientError(
            f"Gradient {name} has elements that share memory (shape {tuple(grad.shape)}, strides "
            f"{grad.stride()}): it cannot be changed in place. Set parameter.grad = "
            "parameter.grad.clone() before clipping."
        )
    return grad, Odd(full // max(grad.numel(), 1) or 1, implicit)


def _overlaps(grad: Tensor) -> bool:
    """Say whether two elements may lie in one place; sizes and strides alone decide."""
    extent = 1
    for stride, size in sorted(zip(grad.stride(), grad.shape, strict=True)):
        if size <= 1:
            continue
        if stride < extent:
            return True
        extent = stride * (size - 1) + extent
    return False
