"""The series of a run's groups. Those that need an optional statistic exist once it was sent."""

from collections.abc import Callable, Sequence

from gradwatch_service.exposition.catalogue import Kind, family
from gradwatch_service.exposition.facts import Facts
from gradwatch_service.exposition.series import Series, Value, bucket_labels, histogram
from gradwatch_service.exposition.text import labels
from gradwatch_service.live.counts import MAGNITUDE_BOUNDS, GroupCounts
from gradwatch_service.live.newest import GroupNewest

__all__ = ["GROUP_SERIES"]

_MAGNITUDE_LABELS = bucket_labels(MAGNITUDE_BOUNDS)


def _labels(facts: Facts) -> Sequence[tuple[str, str]]:
    return [("", labels([("group", name)])) for name in facts.groups]


def _newest(name: str, text: str, value: Callable[[GroupNewest], Value]) -> Series:
    return Series(
        family(name, "gauge", text, group=True),
        _labels,
        lambda facts: [value(group) for group in facts.group_newest],
    )


def _counted(name: str, text: str, value: Callable[[GroupCounts], Value]) -> Series:
    kind: Kind = "counter"
    return Series(
        family(name, kind, text, group=True),
        _labels,
        lambda facts: [value(group) for group in facts.group_counts],
    )


def _measured(facts: Facts) -> list[tuple[str, GroupCounts]]:
    known = zip(facts.groups, facts.group_counts, strict=True)
    return [(name, group) for name, group in known if group.magnitude is not None]


def _magnitude_labels(facts: Facts) -> Sequence[tuple[str, str]]:
    series: list[tuple[str, str]] = []
    for name, _ in _measured(facts):
        group = labels([("group", name)])
        series += [(suffix, f"{group},{le}" if le else group) for suffix, le in _MAGNITUDE_LABELS]
    return series


def _magnitude_values(facts: Facts) -> Sequence[Value]:
    values: list[Value] = []
    for _, group in _measured(facts):
        values += histogram(group.magnitude or (), group.magnitude_sum)
    return values


GROUP_SERIES: tuple[Series, ...] = (
    _newest(
        "gradwatch_group_gradient_norm",
        "L2 norm of the group before clipping at the last step; absent while it is not finite.",
        lambda group: group.norm,
    ),
    _newest(
        "gradwatch_group_gradient_max_abs",
        "Largest magnitude of an element of the group before clipping at the last step.",
        lambda group: group.max_abs,
    ),
    _counted(
        "gradwatch_group_elements_total",
        "Gradient elements of the group in reported steps.",
        lambda group: group.elements,
    ),
    _counted(
        "gradwatch_group_clipped_elements_total",
        "Gradient elements of the group that clipping changed.",
        lambda group: group.clipped,
    ),
    _counted(
        "gradwatch_group_nonfinite_elements_total",
        "Gradient elements of the group that were NaN or infinite.",
        lambda group: group.nonfinite,
    ),
    _counted(
        "gradwatch_group_zero_elements_total",
        "Gradient elements of the group that were exactly 0.",
        lambda group: group.zero,
    ),
    _newest(
        "gradwatch_group_gradient_cosine",
        "Cosine between the gradient and that of the step before, -1 to 1, as the mean over the "
        "group's tensors weighted by squared norm.",
        lambda group: group.cosine,
    ),
    _newest(
        "gradwatch_group_gradient_to_weight_ratio",
        "L2 norm of the group's gradient over that of its weights.",
        lambda group: group.weight_ratio,
    ),
    Series(
        family(
            "gradwatch_group_gradient_magnitude",
            "histogram",
            "Non-zero gradient elements looked at, by magnitude, in steps with a histogram.",
            group=True,
        ),
        _magnitude_labels,
        _magnitude_values,
    ),
)
