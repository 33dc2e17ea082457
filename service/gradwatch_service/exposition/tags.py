"""Tags of runs that become labels, under names that Prometheus accepts and that never collide."""

import re
from collections.abc import Mapping, Sequence

__all__ = ["RESERVED", "TagLabels"]

# Labels that gradwatch_run_info has anyway, and those that Prometheus gives every series.
RESERVED = frozenset(
    [
        "project",
        "run",
        "name",
        "model",
        "policy",
        "framework",
        "client_version",
        "world_size",
        "job",
        "instance",
        "le",
    ]
)
_UNFIT = re.compile("[^a-zA-Z0-9_]")


class TagLabels:
    """Copies chosen tags into labels.

    A tag's name becomes a label by replacing what Prometheus does not allow with ``_``. Names that
    would be the same afterwards are kept apart: the first keeps it, the next get ``tag_`` before
    and, if need be, a number behind.

    Args:
        names: Names of tags, in the order the operator gave.

    Example:
        >>> TagLabels(["team", "cost-centre", "cost.centre"]).of({"cost.centre": "7", "team": "a"})
        {'team': 'a', 'cost_centre': '', 'tag_cost_centre': '7'}
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.labels: dict[str, str] = {}
        taken = set(RESERVED)
        for name in dict.fromkeys(names):
            label = _free(name, taken)
            taken.add(label)
            self.labels[name] = label

    def of(self, tags: Mapping[str, str]) -> Mapping[str, str]:
        """The labels of a run with these tags; every label is there, empty without its tag."""
        return {label: tags.get(name, "") for name, label in self.labels.items()}


def _free(name: str, taken: set[str]) -> str:
    label = _UNFIT.sub("_", name)
    # Two underscores in front are Prometheus's own; a digit may not come first.
    if label.startswith("__") or not label or label[0].isdigit():
        label = f"tag_{label.lstrip('_')}"
    if label not in taken:
        return label
    prefixed, number = f"tag_{label}", 2
    while prefixed in taken:
        prefixed, number = f"tag_{label}_{number}", number + 1
    return prefixed
