"""Where each tensor of a manifest counts: its group and its size, worked out once per manifest."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.live.counts import MAX_GROUPS, OTHER
from gradwatch_wire import TensorInfo

__all__ = ["Layout", "layout_of"]

_REMEMBERED = 256


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A manifest as arrays.

    Attributes:
        groups: Names of the groups, at most 64; the last is ``other`` where there were more.
        index: [T] each tensor's group.
        numel: [T] each tensor's elements.
        folded: Groups that went into ``other`` without being called so.
    """

    groups: tuple[str, ...]
    index: NDArray[np.int64]
    numel: NDArray[np.float64]
    folded: int

    def sums(self, per_tensor: NDArray[Any]) -> NDArray[np.float64]:
        """Sum of [T] numbers by group."""
        summed = np.bincount(self.index, weights=per_tensor, minlength=len(self.groups))
        return summed.astype(np.float64)

    def maxima(self, per_tensor: NDArray[Any]) -> NDArray[np.float64]:
        """Largest of [T] numbers by group; they are at least 0."""
        largest = np.zeros(len(self.groups))
        np.maximum.at(largest, self.index, per_tensor)
        return largest


class _Memory:
    """The layouts of the manifests seen last: reports name few, again and again."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Sequence[TensorInfo], Layout]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str, tensors: Sequence[TensorInfo]) -> Layout:
        with self._lock:
            known = self._known.get(key)
            if known and (known[0] is tensors or known[0] == tensors):
                self._known.move_to_end(key)
                return known[1]
        layout = _build(tensors)
        with self._lock:
            self._known[key] = (tensors, layout)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return layout


_memory = _Memory()


def layout_of(manifest_hash: str, tensors: Sequence[TensorInfo]) -> Layout:
    """The layout of these tensors; the hash only finds it faster."""
    return _memory.get(manifest_hash, tensors)


def _build(tensors: Sequence[TensorInfo]) -> Layout:
    names = list(dict.fromkeys(t.group for t in tensors))
    folded: list[str] = []
    if len(names) > MAX_GROUPS:
        kept = [name for name in names if name != OTHER][: MAX_GROUPS - 1]
        folded = [name for name in names if name not in {*kept, OTHER}]
        names = [*kept, OTHER]
    position = {name: i for i, name in enumerate(names)}
    last = len(names) - 1
    return Layout(
        groups=tuple(names),
        index=np.array([position.get(t.group, last) for t in tensors], dtype=np.int64),
        numel=np.array([t.numel for t in tensors], dtype=np.float64),
        folded=len(folded),
    )
