"""What clipping and measuring mean, in plain Python floats: the oracle of the kernel tests.

Nothing here shares code with the library. Numbers are Python floats (float64), sums are exact.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Column", "bits", "clipped", "largest_at_most", "measured"]

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Column:
    """Statistics of one gradient, as design and documentation define them."""

    norm: float
    max_abs: float
    mean: float
    nonfinite_count: int
    nan_count: int
    zero_count: int
    clipped_count: int
    norm_after: float
    cosine_after: float


def bits(tensor: Tensor) -> list[int]:
    """Return the bit patterns of a floating tensor."""
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = flat.detach().reshape(-1).contiguous()
    return flat.view(_INTEGERS[flat.element_size()]).tolist()


def largest_at_most(limit: float, dtype: torch.dtype) -> float:
    """Return the largest number of a dtype that is not above ``limit``."""
    number = torch.tensor(limit, dtype=torch.float64).to(dtype).reshape(1)
    if number.to(torch.float64).item() > limit:
        # Positive floats are ordered as their bit patterns are.
        number = (number.view(_INTEGERS[number.element_size()]) - 1).view(dtype)
    assert number.to(torch.float64).item() <= limit
    return number.to(torch.float64).item()


def clipped(values: list[float], limit: float) -> list[float]:
    """Return the values held in [-limit, limit]; NaN stays."""
    return [v if math.isnan(v) else math.copysign(min(abs(v), limit), v) for v in values]


def measured(before: list[float], after: list[float]) -> Column:
    """Return the statistics of one gradient before and after clipping, element by element."""
    finite = [(b, a) for b, a in zip(before, after, strict=True) if math.isfinite(b)]
    norm = math.hypot(*(b for b, _ in finite))
    norm_after = math.hypot(*(a for _, a in finite))
    if norm_after > 0:
        dot = math.fsum((b / norm) * (a / norm_after) for b, a in finite)
    else:
        dot = 0.0 if norm > 0 else 1.0
    return Column(
        norm=norm,
        max_abs=max((abs(b) for b, _ in finite), default=0.0),
        mean=math.fsum(b / len(before) for b, _ in finite) if before else 0.0,
        nonfinite_count=len(before) - len(finite),
        nan_count=sum(math.isnan(b) for b in before),
        zero_count=sum(b == 0 for b in before),
        clipped_count=sum(b != a for b, a in zip(before, after, strict=True) if not math.isnan(b)),
        norm_after=norm_after,
        cosine_after=dot,
    )
