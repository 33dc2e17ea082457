"""Gradient noise around a known optimum: a bowl whose gradients are right on average, and heavy-tailed."""

from collections.abc import Callable

import torch
from benchmarks.claims.job import Single
from torch import Tensor, nn

__all__ = ["NOISES", "bowl"]

WIDTH = 200
TAIL = 1.5  # below 2: the variance is infinite; above 1: the mean exists

Noise = Callable[[torch.Generator], Tensor]


def bowl(noise: str, seed: int, rate: float) -> Single:
    """Minimise half the squared distance to 0 in 200 dimensions, started at the optimum.

    Scored by the median distance of an element from the optimum, averaged over the second half.
    ``drift`` is the median element there, with its sign.
    """
    model = nn.ParameterList([nn.Parameter(torch.zeros(WIDTH))])
    weight = model[0]
    generator = torch.Generator().manual_seed(4000 + seed)
    draw = NOISES[noise]
    seen: list[Tensor] = []

    def loss() -> Tensor:
        seen.append(weight.detach().clone())
        # The gradient of this is the weight plus the noise.
        return 0.5 * weight.square().sum() + (weight * draw(generator)).sum()

    def measure() -> dict[str, float]:
        later = torch.stack(seen[len(seen) // 2 :])
        return {
            "score": float(later.abs().median(dim=1).values.mean()),
            "drift": float(later.median(dim=1).values.mean()),
        }

    return Single(model, torch.optim.SGD(model.parameters(), lr=rate), loss, measure)


def _student(generator: torch.Generator) -> Tensor:
    """Student's t with 1.5 degrees of freedom: symmetric."""
    normal = torch.randn(WIDTH, generator=generator)
    # A chi-square of 1.5 degrees of freedom is twice a gamma of 0.75, drawn by Marsaglia and Tsang's
    # boost from numbers that come from the generator alone.
    return normal / (_gamma(TAIL / 2, generator) * 2 / TAIL).sqrt()


def _gamma(shape: float, generator: torch.Generator) -> Tensor:
    """Gamma below shape 1 by Marsaglia and Tsang 2000 with the boost of their section 6."""
    d = shape + 1 - 1 / 3
    result = torch.full((WIDTH,), torch.nan)
    while bool(result.isnan().any()):
        x = torch.randn(WIDTH, generator=generator)
        v = (1 + x / (9 * d) ** 0.5) ** 3
        u = torch.rand(WIDTH, generator=generator)
        taken = (v > 0) & (u.log() < 0.5 * x**2 + d - d * v + d * v.clamp_min(1e-30).log())
        result = torch.where(result.isnan() & taken, d * v, result)
    return result * torch.rand(WIDTH, generator=generator) ** (1 / shape)


def _pareto(generator: torch.Generator) -> Tensor:
    """Pareto of index 1.5 less its mean: rare large numbers above, none far below."""
    uniform = torch.rand(WIDTH, generator=generator).clamp_min(1e-7)
    return uniform ** (-1 / TAIL) - TAIL / (TAIL - 1)


NOISES: dict[str, Noise] = {
    "symmetric": _student,
    "skewed": lambda generator: -_pareto(generator),
    "normal": lambda generator: torch.randn(WIDTH, generator=generator),
}
