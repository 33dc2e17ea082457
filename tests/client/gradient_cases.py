"""Gradients and limits for hypothesis, and the kernels that run on this machine."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from gradwatch import kernels

__all__ = ["DTYPES", "KERNELS", "gradients", "limits", "values_of"]

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def _runs(name: str) -> bool:
    try:
        kernels.choose(name, torch.device("cpu"))
    except kernels.KernelError:
        return False
    return True


# A kernel without its compiler is not there to be tested; tests/client/test_build.py says so aloud.
KERNELS = [name for name in ("reference", "cpu") if _runs(name)]

_SPECIAL = st.sampled_from(
    [
        0.0,
        -0.0,
        math.nan,
        math.inf,
        -math.inf,
        1.0,
        -1.0,
        65504.0,
        -65504.0,
        6e-8,
        1e-40,
        1e19,
        -1e19,
    ]
)
_NUMBERS = st.one_of(
    _SPECIAL,
    st.floats(-10, 10),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-1e-4, 1e-4),
)

limits = st.one_of(
    st.sampled_from([0.1, 1.0, 0.3, 1e-3]), st.floats(1e-9, 1e6), st.floats(1e-3, 10)
)


@st.composite
def gradients(draw, dtype: torch.dtype, *, finite: bool = False) -> Tensor:
    """Draw one gradient: short with awkward values, or long and ordinary with some awkward ones."""
    numbers = draw(st.lists(_NUMBERS, max_size=24))
    if finite:
        numbers = [n for n in numbers if math.isfinite(n)]
    grad = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    if finite:
        grad = grad[grad.isfinite()]
    if draw(st.booleans()):
        # More than one block of any kernel, so that its joints are crossed.
        length = draw(st.integers(1, 5000))
        source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        size = 10.0 ** draw(st.integers(-3, 3))
        rest = torch.randn(length, generator=source, dtype=torch.float64) * size
        grad = torch.cat([grad, rest.clamp(-6e4, 6e4).to(dtype)])
    return grad


def values_of(grad: Tensor) -> list[float]:
    """Return the elements as Python floats; complex ones as pairs."""
    real = torch.view_as_real(grad) if grad.is_complex() else grad
    return real.detach().to_dense().reshape(-1).to(torch.float64).tolist()
