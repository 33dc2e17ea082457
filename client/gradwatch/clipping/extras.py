"""Statistics beyond the clipping pass: histograms, cosines, norms of weights and updates.

They look at samples (:mod:`gradwatch.kernels.sampling`): every element of a small tensor, a 64th of a
large one, the same places at every step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradwatch.errors import PolicyError
from gradwatch.kernels import Gradients, Histogram, Kernel
from gradwatch.kernels.sampling import BINS, looked_at_in_all, sample_length, sample_lengths

__all__ = ["OPTIONAL", "Extras", "Measured", "Wanted"]

# Elements below which looking at an eighth saves nothing.
_SMALL_MODEL = 1 << 15

OPTIONAL = ("cosine_previous", "cosine_momentum", "weight_norm", "update_norm")

Groups = Sequence[tuple[Kernel, torch.device, Gradients]]
Tensors = Sequence[Tensor | None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure in addition, and how often.

    Attributes:
        optional: Names from :data:`OPTIONAL`.
        every: Steps between measurements of those.
        histogram_every: Steps between histograms; 0 takes none.
        histogram_slices: A histogram looks at every one in this many slices; 1 is exact.
    """

    optional: tuple[str, ...] = ()
    every: int = 1
    histogram_every: int = 0
    histogram_slices: int = 8

    def __post_init__(self) -> None:
        if unknown := set(self.optional) - set(OPTIONAL):
            raise PolicyError(f"optional={sorted(unknown)}: choose from {', '.join(OPTIONAL)}.")
        for name, least in (("every", 1), ("histogram_every", 0), ("histogram_slices", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise PolicyError(f"{name}={value!r}: give a whole number from {least}.")


@dataclass(slots=True)
class Measured:
    """One step's additional statistics; rows that were not measured are left out.

    Attributes:
        rows: [T] by name.
        cosine_previous: [] over all tensors.
        histograms: One per device, for the clipping pass to fill in: it visits memory anyway.
        histogram_sampled: Share of the elements that the histograms look at.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    cosine_previous: Tensor | None = None
    histograms: Sequence[Histogram] = ()
    histogram_sampled: float = 1.0

    @property
    def histogram(self) -> Tensor | None:
        """[T, BINS] counts over all devices, once they are filled in."""
        if not self.histograms:
            return None
        first, *others = [one.counts for one in self.histograms]
        return sum((counts.to(first.device) for counts in others), first)


class _Track:
    """Compares this step's samples with those of the step before."""

    def __init__(self) -> None:
        self._step = -1
        self._samples: list[Tensor] = []
        self._lengths: list[tuple[int, ...]] = []

    def compare(self, step: int, groups: Groups, like: Tensor) -> tuple[Tensor, bool]:
        """Return [3, T] now*now, before*before, now*before, and whether the step before is known."""
        samples = [kernel.sample(tensors) for kernel, _, tensors in groups]
        lengths = [sample_lengths(tensors.numel) for _, _, tensors in groups]
        known = self._step == step - 1 and self._lengths == lengths
        before = self._samples if known else samples
        self._step, self._samples, self._lengths = step, samples, lengths
        return _products(groups, samples, before, like), known


class Extras:
    """Measures what is wanted and remembers the samples it will compare with.

    Args:
        wanted: What to measure.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._gradients, self._weights = _Track(), _Track()
        self._shares: tuple[object, Tensor] | None = None

    def measure(
        self,
        step: int,
        groups: Groups,
        like: Tensor,
        parameters: Tensors | None,
        momenta: Tensors | None,
    ) -> Measured:
        """Look at gradients before they are clipped.

        Args:
            step: Number of this step.
            groups: Gradients per device with their kernel.
            like: [T] whose dtype and device the results shall have.
            parameters: Needed for norms of weights and updates.
            momenta: The optimizer's momentum buffers, for ``cosine_momentum``.
        """
        wanted, found = self._wanted, Measured()
        if wanted.histogram_every and step % wanted.histogram_every == 0:
            self._prepare(step // wanted.histogram_every, groups, found)
        due = step % wanted.every == 0
        if not wanted.optional or not (due or (step + 1) % wanted.every == 0):
            return found  # neither measured now nor compared with at the next step
        if "cosine_previous" in wanted.optional:
            sums, known = self._gradients.compare(step, groups, like)
            if known and due:
                found.rows["cosine_previous"] = _cosine(sums)
                found.cosine_previous = _cosine((sums * self._share(groups, like)).sum(1))
        if "cosine_momentum" in wanted.optional and momenta is not None and due:
            now = [kernel.sample(grads) for kernel, _, grads in groups]
            then = [kernel.sample(_beside(momenta, grads)) for kernel, _, grads in groups]
            found.rows["cosine_momentum"] = _cosine(_products(groups, now, then, like))
        if parameters is not None and {"weight_norm", "update_norm"} & set(wanted.optional):
            weights = [(k, device, _beside(parameters, grads)) for k, device, grads in groups]
            sums, known = self._weights.compare(step, weights, like)
            if due:
                now_, before, both = sums * self._share(groups, like)
                found.rows["weight_norm"] = now_.sqrt()
                if known:
                    found.rows["update_norm"] = (now_ + before - 2 * both).clamp(min=0).sqrt()
        return found

    def _prepare(self, turn: int, groups: Groups, found: Measured) -> None:
        elements = sum(sum(grads.numel) for _, _, grads in groups)
        every = self._wanted.histogram_slices if elements > _SMALL_MODEL else 1
        phase = turn % every  # other places each time, so that all elements are seen in turn
        seen = sum(looked_at_in_all(grads.numel, every, phase) for _, _, grads in groups)
        if not seen:
            return
        found.histograms = [
            Histogram(torch.zeros(len(grads), BINS, dtype=torch.int64, device=d), every, phase)
            for _, d, grads in groups
        ]
        found.histogram_sampled = seen / elements

    def _share(self, groups: Groups, like: Tensor) -> Tensor:
        """Return [T] elements of each tensor per element sampled; made anew only for other sizes."""
        sizes = tuple(grads.numel for _, _, grads in groups)
        if self._shares is None or self._shares[0] != sizes:
            largest = [max(of_one) for of_one in zip(*sizes, strict=True)]
            shares = [n / sample_length(n) if n else 0.0 for n in largest]
            self._shares = (sizes, torch.tensor(shares).to(like))
        return self._shares[1]


def _beside(others: Tensors, grads: Gradients) -> Gradients:
    """Return the tensors that belong to gradients which are there, in the form that kernels take."""
    pairs = zip(others, grads.tensors, strict=True)
    there = [None if grad is None or other is None else other.detach() for other, grad in pairs]
    return Gradients.of(
        [torch.view_as_real(t) if t is not None and t.is_complex() else t for t in there]
    )


def _products(groups: Groups, a: list[Tensor], b: list[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros(3, len(like), dtype=like.dtype, device=like.device)
    for (kernel, _, tensors), x, y in zip(groups, a, b, strict=True):
        total += kernel.products(x, y, sample_lengths(tensors.numel)).to(total)
    return total


def _cosine(sums: Tensor) -> Tensor:
    """Return the cosine from [3, ...] sums; NaN where one of the two is zero."""
    squares = sums[0].sqrt() * sums[1].sqrt()
    return torch.where(squares > 0, (sums[2] / squares).clamp(-1, 1), math.nan)
