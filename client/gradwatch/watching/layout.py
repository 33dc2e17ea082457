"""Which tensors an optimizer updates, and what they are called."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.errors import WatchError
from gradwatch.watching.sharding import sharded_by
from gradwatch_wire import TensorInfo, default_group

__all__ = ["Layout", "Names", "Parameters", "patterns", "unwrap_model"]

# Wrappers that put a prefix before every name: DataParallel and DDP hold .module, torch.compile
# holds ._orig_mod. Names are the user's own, whatever is wrapped around the model.
_WRAPPED = ("module", "_orig_mod")


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the user's module inside DistributedDataParallel, DataParallel or torch.compile."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


class Names:
    """Names of parameters, by identity.

    A tied parameter has one name, the first; its others are aliases. Without a model the names come
    from an optimizer built with ``model.named_parameters()``, else from the position in the groups.

    Args:
        model: The model, or None.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._names: dict[int, str] = {}
        self.aliases: dict[str, list[str]] = {}
        self._refresh()

    def _refresh(self) -> None:
        if self._model is None:
            return
        for name, parameter in unwrap_model(self._model).named_parameters(remove_duplicate=False):
            first = self._names.setdefault(id(parameter), name)
            if name != first and name not in self.aliases.setdefault(first, []):
                self.aliases[first].append(name)

    def of(self, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
        """Return (name, parameter) for everything that needs a gradient, in the optimizer's order."""
        found: list[tuple[str, Tensor]] = []
        missing = [p for p in _parameters(optimizer) if id(p) not in self._names]
        if missing:
            self._refresh()  # layers may have been added to the model since
        for position, group in enumerate(optimizer.param_groups):
            given: Sequence[str] = group.get("param_names", ())
            for index, parameter in enumerate(group["params"]):
                if parameter.requires_grad:
                    spare = given[index] if index < len(given) else f"group{position}.{index}"
                    found.append((self._names.get(id(parameter), spare), parameter))
        return found

    def covers(self, optimizer: Optimizer) -> bool:
        """Say whether model and optimizer have a parameter in common; True without a model."""
        return self._model is None or any(id(p) in self._names for p in _parameters(optimizer))


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


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
    """

    names: Names
    optimizer: Optimizer
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    groups: Mapping[str, str] | None = None
    parameters: list[Tensor] = field(default_factory=list)
    tensors: list[TensorInfo] = field(default_factory=list)
    _seen: list[Tensor] = field(default_factory=list)
    _trained: list[bool] = field(default_factory=list)
    _rows: dict[str, int] = field(default_factory=dict)

    def refresh(self) -> bool:
        """Follow the optimizer's groups; return whether tensors were added.

        Costs one pass over the parameters by identity when nothing changed.
        """
        now = list(_parameters(self.optimizer))
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
            if self._wants(name):
                self._place(name, parameter)
        return len(self.tensors) > before

    def gradients(self, *, changes: bool = True) -> list[Tensor | None]:
        """Return every watched gradient in order; None where there is none this time.

        Sparse gradients come coalesced, since the same element may be listed several times before.

        Args:
            changes: Whether the gradients will be changed; then the coalesced ones replace theirs.
        """
        return [_gradient(parameter, changes=changes) for parameter in self.parameters]

    def _wants(self, name: str) -> bool:
        return (self.include is None or _matches(name, self.include)) and not (
            self.exclude and _matches(name, self.exclude)
        )

    def _place(self, name: str, parameter: Tensor) -> None:
        """Give a parameter its row: its old one by name, shape and dtype, else a new one."""
        if (splitter := sharded_by(parameter)) is not None:
            raise WatchError(
                f"{name!r} is {splitter}: this rank holds only a part of it. Sharded training is not "
                "watched yet; nothing is clipped or measured, rather than wrongly."
            )
        name, row = self._free(name, parameter)
        if row is not None:
            self.parameters[row] = parameter
            return
        self._rows[name] = len(self.tensors)
        self.parameters.append(parameter)
        self.tensors.append(
            TensorInfo(
                name=name,
                shape=_shape(parameter),
                dtype=str(parameter.dtype).removeprefix("torch."),
                group=self._group(name),
            )
        )

    def _free(self, name: str, parameter: Tensor) -> tuple[str, int | None]:
        """Find the row a parameter may take, or a name that is not taken by another tensor."""
        candidate, number = name, 2
        while (row := self._rows.get(candidate)) is not None:
            known, info = self.parameters[row], self.tensors[row]
            same = info.shape == _shape(parameter)
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


def _gradient(parameter: Tensor, *, changes: bool) -> Tensor | None:
    grad = parameter.grad
    if grad is not None and grad.is_sparse and not grad.is_coalesced():
        grad = grad.coalesce()
        if changes:
            parameter.grad = grad
    return grad


def _shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape that is reported: a complex number counts as two, real and imaginary part."""
    return (*parameter.shape, 2) if parameter.is_complex() else tuple(parameter.shape)


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
