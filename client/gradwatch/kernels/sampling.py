"""Which elements a histogram or a sample looks at, and how to look at them in plain torch.

Known from sizes alone, so nothing is read back to find out. Neighbours are taken together: single
elements would bring in every cache line all the same.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.kernels.base import accumulator

__all__ = ["BINS", "BINS_PER_OCTAVE", "LOWEST_EXPONENT", "SLICE", "looked_at", "slices_for"]

BINS = 256
BINS_PER_OCTAVE = 4
LOWEST_EXPONENT = -48
SLICE = 512  # neighbours that are sampled together
STRETCH = 4096  # neighbours that a histogram counts together

# By dtype: the integer of the same size, the digits of a mantissa, and what is added to an exponent.
_LAYOUTS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}
# 2^(1/4), 2^(1/2) and 2^(3/4) rounded up, as the digits of a float64's mantissa: no number lies between.
_QUARTERS = (0x306FE0A31B716, 0x6A09E667F3BCD, 0xAE89F995AD3AE)

_WHOLE = 1024  # tensors up to this size are sampled completely
_SHARE = 64  # of larger ones, one slice in this many, and never less than the whole of a small one


def looked_at(numel: int, every: int, phase: int) -> int:
    """Return how many elements a histogram of every ``every``-th stretch looks at."""
    unit = 1 if numel < every * STRETCH else STRETCH
    rounds, rest = divmod(numel, every * unit)
    return rounds * unit + min(max(rest - phase * unit, 0), unit)


@functools.lru_cache(maxsize=64)
def looked_at_in_all(numel: tuple[int, ...], every: int, phase: int) -> int:
    """Return the same for several tensors together. Sizes rarely change, so it is remembered."""
    return sum(looked_at(n, every, phase) for n in numel)


def slices_for(numel: int) -> int:
    """Return how many slices of a tensor are sampled; 0 is all of it."""
    return 0 if numel <= _WHOLE else max(_WHOLE // SLICE, numel // (SLICE * _SHARE))


def sample_length(numel: int) -> int:
    """Return how many elements of a tensor are sampled."""
    return slices_for(numel) * SLICE or numel


@functools.lru_cache(maxsize=64)
def sample_lengths(numel: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many elements of each tensor are sampled. Sizes rarely change, so it is remembered."""
    return tuple(map(sample_length, numel))


@functools.lru_cache(maxsize=64)
def slice_counts(numel: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many slices of each tensor are sampled; 0 is all of it."""
    return tuple(map(slices_for, numel))


def magnitude_bins(grad: Tensor, every: int, phase: int) -> Tensor:
    """Return [BINS] counts of the finite, non-zero elements looked at, by magnitude.

    Bin b holds 2^(LOWEST + b/4) <= |g| < 2^(LOWEST + (b+1)/4); the first and the last also take what
    lies beyond.
    """
    flat = grad.reshape(-1)
    unit = 1 if flat.numel() < every * STRETCH else STRETCH
    whole = flat.numel() // (every * unit) * every * unit
    parts = [
        flat[:whole].view(-1, every, unit)[:, phase].reshape(-1),
        flat[whole + phase * unit : whole + (phase + 1) * unit],
    ]
    wide = torch.float64 if flat.dtype is torch.float64 else torch.float32
    integer, digits, bias = _LAYOUTS[wide]
    seen = torch.cat(parts).to(wide).abs()
    bits = seen.view(integer)
    mantissa = bits & ((1 << digits) - 1)
    # A float32's border is the float64's without its last digits, rounded up again.
    borders = [-(-border >> (52 - digits)) for border in _QUARTERS]
    quarter = sum((mantissa >= border).to(integer) for border in borders)
    bins = ((bits >> digits) - bias - LOWEST_EXPONENT) * BINS_PER_OCTAVE + quarter
    counted = (seen > 0) & seen.isfinite()
    counts = torch.zeros(BINS, dtype=torch.int64, device=grad.device)
    places = bins.clamp(0, BINS - 1).to(torch.int64)
    return counts.scatter_add_(0, places, counted.to(torch.int64))


def take_sample(grad: Tensor) -> Tensor:
    """Return the sampled elements in order, as float32, what is not finite as zero."""
    flat = grad.reshape(-1)
    slices = slices_for(flat.numel())
    if slices:
        step = flat.numel() // slices
        flat = flat[: slices * step].view(slices, step)[:, :SLICE].reshape(-1)
    narrow = flat.to(torch.float32)
    return torch.where(narrow.isfinite(), narrow, 0)


def products(a: Tensor, b: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return [3, T]: sum a*a, sum b*b and sum a*b of each tensor's part of two samples."""
    wide = [torch.split(x.to(accumulator(x.device)), list(lengths)) for x in (a, b)]
    columns = [torch.stack([x.dot(x), y.dot(y), x.dot(y)]) for x, y in zip(*wide, strict=True)]
    return torch.stack(columns, 1)
