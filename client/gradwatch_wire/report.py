"""One delivery: the statistics of some steps of one optimizer on one rank, as columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradwatch_wire.column import Column

__all__ = ["WIRE_VERSION", "Histograms", "Partial", "Report"]

WIRE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Histograms:
    """How many elements of each tensor lie in each range of magnitudes, at some of the steps.

    Bin ``b`` counts the finite non-zero elements with
    ``2^(lowest_exponent + b/B) <= |g| < 2^(lowest_exponent + (b+1)/B)``, B = ``bins_per_octave``.
    There are 64 B bins; the first and the last also take what lies beyond; trailing zero bins may
    be left out.

    Attributes:
        steps: i8 [H], among the report's steps.
        bins_per_octave: 1, 2, 4 or 8.
        lowest_exponent: Exponent of the first bin's lower end.
        sampled: Share of the elements that were looked at, above 0, at most 1.
        counts: u4 or u8 [H, T, bins], elements.
    """

    steps: Column
    bins_per_octave: int
    lowest_exponent: int
    sampled: float
    counts: Column


@dataclass(frozen=True, slots=True)
class Partial:
    """Says that a report covers this rank's share of tensors that are spread over ranks.

    Attributes:
        ranks: The ranks whose reports make the whole together.
        weights: f8 [T]: what this rank's counts and squared norms count for (0.5: held twice).
        local_numel: u8 [T]: elements of the tensor that this rank holds.
    """

    ranks: tuple[int, ...]
    weights: Column
    local_numel: Column


@dataclass(frozen=True, slots=True)
class Report:
    """One delivery of S steps over the T tensors of a manifest.

    Attributes:
        attempt: Which start of the job.
        rank: Who reports.
        optimizer: Whose steps.
        sequence: Number of the delivery of this run, attempt and rank; from 0, without gaps.
        manifest: Hash of the manifest that gives the columns their tensors.
        steps: i8 [S], strictly increasing attempts of the optimizer.
        scalars: f8 [S] by name; NaN: not measured at that step.
        tensors: [S, T] by statistic, gradient units or elements; NaN: not measured.
        histograms: Magnitudes at some of the steps.
        time: f8 [S], the client's clock in Unix seconds; for display only.
        partial: Set where this rank holds only a part of the tensors.
        dropped: Steps that were dropped on purpose before this delivery, by reason.
        version: Of the format.
    """

    attempt: int
    rank: int
    optimizer: str
    sequence: int
    manifest: str
    steps: Column
    scalars: Mapping[str, Column] = field(default_factory=dict)
    tensors: Mapping[str, Column] = field(default_factory=dict)
    histograms: Histograms | None = None
    time: Column | None = None
    partial: Partial | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    version: int = WIRE_VERSION
