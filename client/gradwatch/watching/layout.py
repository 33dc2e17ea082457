"""Which tensors of an optimizer are watched, each in a row of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.errors import WatchError
from gradwatch.watching.gates import WHOLE, Gates
from gradwatch.watching.names import Names
from gradwatch.watching.sharding import sharded_by
from gradwatch_wire import TensorInfo, default_group

__all__ = ["Layout", "Parameters", "patterns"]


class Parameters:
    """Stands in for the optimizer of a loop that has none: the model's parameters, alive."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group, as an optimizer would hold it."""
        return [{"params": list(self._model.parameters())}]


@dataclass(slots=True)
class Layout:
    """The watched tensors of one optimizer, in an order that only ever grows.

    ``param_groups`` is alive: layers are unfrozen, adapters added, parameters replaced by their
    like. Each call of :meth:`refresh` compares what is there now with what was, by identity.

    Args:
        names: Names of the model's parameters.
        optimizer: The optimizer whose ``param_groups`` are followed.
        include: Patterns of names to watch; None is all of them.
        exclude: Patterns of names to leave alone; wins over ``include``.
        groups: Pattern of names to group, the first match counts; otherwise by the first numeric
            component of the name.
        gates: Parameters that are watched in parts, by identity.
    """

    names: Names
    optimizer: Optimizer
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    groups: Mapping[str, str] | None = None
    gates: Gates | None = None
    parameters: list[Tensor] = field(default_factory=list)
    tensors: list[TensorInfo] = field(default_factory=list)
    _seen: list[Tensor] = field(default_factory=list)
    _trained: list[bool] = field(default_factory=list)
    _rows: dict[str, int] = field(default_factory=dict)
    _parts: list[slice] = field(default_factory=list)

    def refresh(self) -> bool:
        """Follow the optimizer's groups; return whether tensors were added.

        Costs one pass over the parameters by identity when nothing changed.
        """
        now = [p for group in self.optimizer.param_groups for p in group["params"]]
        trained = [p.requires_grad for p in now]
        if (
            len(now) == len(self._seen)
            and trained == self._trained
            and all(map(is_, now, self._seen))
        ):
            return False
        self._seen, self._trained = now, trained
        before = len(self.tensors)
        for name, parameter in self.names.of(self.optimizer):
            parts = {"": WHOLE} if self.gates is None else self.gates.of(parameter)
            for gate, part in parts.items():
                if self._wants(name + gate):
                    self._place(name + gate, parameter, part)
        return len(self.tensors) > before

    def gradients(self, *, changes: bool = True) -> list[Tensor | None]:
        """Return every watched gradient in order; None where there is none this time.

        Sparse gradients come coalesced, since the same element may be listed several times before.

        Args:
            changes: Whether the gradients will be changed; then the coalesced ones replace theirs.
        """
        if self.gates is None:
            # The usual case, at every step of every training: no call per tensor.
            grads = [parameter.grad for parameter in self.parameters]
            if not [grad for grad in grads if grad is not None and grad.is_sparse]:
                return grads
        return [
            _gradient(parameter, part, changes=changes)
            for parameter, part in zip(self.parameters, self._parts, strict=True)
        ]

    def weights(self) -> list[Tensor]:
        """Return every watched parameter in order, in the same parts as the gradients."""
        if self.gates is None:
            return self.parameters
        return [
            parameter if part is WHOLE else parameter[part]
            for parameter, part in zip(self.parameters, self._parts, strict=True)
        ]

    def _wants(self, name: str) -> bool:
        return (self.include is None or _matches(name, self.include)) and not (
            self.exclude and _matches(name, self.exclude)
        )

    def _place(self, name: str, parameter: Tensor, part: slice) -> None:
        """Give a parameter its row: its old one by name, shape and dtype, else a new one."""
        if (splitter := sharded_by(parameter)) is not None:
            raise WatchError(
                f"{name!r} is {splitter}: this rank holds only a part of it. Sharded training is not "
                "watched yet; nothing is clipped or measured, rather than wrongly."
            )
        name, row = self._free(name, parameter, part)
        if row is not None:
            self.parameters[row] = parameter
            return
        self._rows[name] = len(self.tensors)
        self.parameters.append(parameter)
        self._parts.append(part)
        self.tensors.append(
            TensorInfo(
                name=name,
                shape=_shape(parameter, part),
                dtype=str(parameter.dtype).removeprefix("torch."),
                group=self._group(name),
            )
        )

    def _free(self, name: str, parameter: Tensor, part: slice) -> tuple[str, int | None]:
        """Find the row a parameter may take, or a name that is not taken by another tensor."""
        candidate, number = name, 2
        while (row := self._rows.get(candidate)) is not None:
            known, info = self.parameters[row], self.tensors[row]
            same = info.shape == _shape(parameter, part)
            # Two live parameters of one name (no model given) must not share a row.
            if known is parameter or (same and not any(known is p for p in self._seen)):
                return candidate, row
            candidate, number = f"{name}~{number}", number + 1
        return candidate, None

    def _group(self, name: str) -> str:
        for pattern, group in (self.groups or {}).items():
            if fnmatchcase(name, pattern):
                return group
        return default_group(name)


def _gradient(parameter: Tensor, part: slice, *, changes: bool) -> Tensor | None:
    grad = parameter.grad
    if grad is None or part is not WHOLE:
        return None if grad is None else grad[part]
    if grad.is_sparse and not grad.is_coalesced():
        grad = grad.coalesce()
        if changes:
            parameter.grad = grad
    return grad


def _shape(parameter: Tensor, part: slice) -> tuple[int, ...]:
    """Return the shape that is reported: a complex number counts as two, real and imaginary part."""
    shape = tuple(parameter.shape)
    if part is not WHOLE:
        shape = (part.stop - part.start, *shape[1:])
    return (*shape, 2) if parameter.is_complex() else shape


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def patterns(what: str, value: Any) -> tuple[str, ...] | None:
    """Check ``include`` or ``exclude``: one pattern or several.

    Raises:
        WatchError: Something that is not text.
    """
    if value is None:
        return None
    given = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(pattern, str) for pattern in given):
        raise WatchError(f"watch({what}={value!r}): give name patterns such as 'encoder.*'.")
    return given
