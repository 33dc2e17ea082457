"""What adds up over a run: steps, elements, seconds, norms by size. Sums of sums are sums."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "LARGEST",
    "MAGNITUDE_BOUNDS",
    "MAX_GROUPS",
    "NORM_BOUNDS",
    "OTHER",
    "Counts",
    "GroupCounts",
    "add_counts",
]

# Narrow where clipping thresholds usually lie, wide beyond; the twelfth bucket takes the rest.
NORM_BOUNDS = (1e-6, 1e-4, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
# Decades from where float16 has long gone to zero to where nothing is well any more.
MAGNITUDE_BOUNDS = tuple(float(f"1e{exponent}") for exponent in range(-12, 4))

MAX_GROUPS = 64
OTHER = "other"
# A sum held here stays finite on the page whatever a hostile client adds up.
LARGEST = 1e300


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """What adds up over the tensors of one group.

    Attributes:
        elements: Gradient elements seen.
        clipped: Elements that clipping changed.
        nonfinite: Elements that were NaN or infinite.
        zero: Elements that were exactly 0; None where nobody counted them.
        magnitude: Non-zero elements by ``MAGNITUDE_BOUNDS`` and one more for the rest, each
            element in one bucket only; None where no histogram was sent.
        magnitude_sum: Sum of those magnitudes, each taken at the middle of its bin.
    """

    elements: int = 0
    clipped: int = 0
    nonfinite: int = 0
    zero: int | None = None
    magnitude: tuple[int, ...] | None = None
    magnitude_sum: float = 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What adds up over a run.

    Attributes:
        steps: Attempts of the optimizer, those between reports included.
        clipped_steps: Steps at which clipping changed anything.
        nonfinite_steps: Steps with a NaN or infinite element.
        skipped_steps: Attempts that changed no weight.
        elements: Gradient elements in reported steps.
        clipped_elements: Of these, changed by clipping.
        nonfinite_elements: Of these, NaN or infinite.
        norm_buckets: Finite steps by global norm: one number per bound and one for the rest, each
            step in one bucket only.
        norm_sum: Sum of those norms.
        training_seconds: Time that reported steps took.
        overhead_seconds: Time that the client spent in them.
        groups: The same by group.
    """

    steps: int = 0
    clipped_steps: int = 0
    nonfinite_steps: int = 0
    skipped_steps: int = 0
    elements: int = 0
    clipped_elements: int = 0
    nonfinite_elements: int = 0
    norm_buckets: tuple[int, ...] = (0,) * (len(NORM_BOUNDS) + 1)
    norm_sum: float = 0.0
    training_seconds: float = 0.0
    overhead_seconds: float = 0.0
    groups: Mapping[str, GroupCounts] = field(default_factory=dict)


def add_counts(left: Counts, right: Counts) -> Counts:
    """The sum; associative, with ``Counts()`` as zero, so deliveries may be added in any grouping."""
    return Counts(
        steps=left.steps + right.steps,
        clipped_steps=left.clipped_steps + right.clipped_steps,
        nonfinite_steps=left.nonfinite_steps + right.nonfinite_steps,
        skipped_steps=left.skipped_steps + right.skipped_steps,
        elements=left.elements + right.elements,
        clipped_elements=left.clipped_elements + right.clipped_elements,
        nonfinite_elements=left.nonfinite_elements + right.nonfinite_elements,
        norm_buckets=_add_buckets(left.norm_buckets, right.norm_buckets),
        norm_sum=_add_floats(left.norm_sum, right.norm_sum),
        training_seconds=_add_floats(left.training_seconds, right.training_seconds),
        overhead_seconds=_add_floats(left.overhead_seconds, right.overhead_seconds),
        groups=_add_groups(left.groups, right.groups),
    )


def _add_groups(
    left: Mapping[str, GroupCounts], right: Mapping[str, GroupCounts]
) -> Mapping[str, GroupCounts]:
    sums = dict(left)
    for name, added in right.items():
        # Tensors may be added to a run for ever; its page may not grow for ever.
        known = name if name in sums or len(sums) < MAX_GROUPS else OTHER
        sums[known] = _add_group(sums[known], added) if known in sums else added
    return sums


def _add_group(left: GroupCounts, right: GroupCounts) -> GroupCounts:
    magnitude = right.magnitude if left.magnitude is None else left.magnitude
    if left.magnitude is not None and right.magnitude is not None:
        magnitude = _add_buckets(left.magnitude, right.magnitude)
    zero = right.zero if left.zero is None else left.zero + (right.zero or 0)
    return GroupCounts(
        elements=left.elements + right.elements,
        clipped=left.clipped + right.clipped,
        nonfinite=left.nonfinite + right.nonfinite,
        zero=zero,
        magnitude=magnitude,
        magnitude_sum=_add_floats(left.magnitude_sum, right.magnitude_sum),
    )


def _add_buckets(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _add_floats(left: float, right: float) -> float:
    return min(left + right, LARGEST)
