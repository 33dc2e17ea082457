"""What there is to watch: the innermost optimizers, their tensors, the loop's GradScaler."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from gradwatch.console import LogOnce
from gradwatch.errors import WatchError
from gradwatch.watching.gates import Gates
from gradwatch.watching.hooks import unwrap_optimizer
from gradwatch.watching.layout import Layout, Parameters
from gradwatch.watching.names import Names

__all__ = ["Optimizers", "find_optimizers", "lay_out", "visible_scaler"]

Optimizers = Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer]


def find_optimizers(model: nn.Module | None, given: Optimizers | None) -> dict[str, Optimizer]:
    """Return name to innermost optimizer, or a stand-in for a loop that has none.

    Raises:
        WatchError: Nothing to watch, or something that is no optimizer.
    """
    if given is None:
        if model is None:
            raise WatchError(
                "watch(): give a model, an optimizer, or both; there is nothing to watch."
            )
        return {"default": cast("Optimizer", Parameters(model))}
    if isinstance(given, Mapping):
        named = {str(label): each for label, each in given.items()}
    elif isinstance(given, Sequence):
        named = {f"optimizer_{index}": each for index, each in enumerate(given)}
    else:
        named = {"default": given}
    found: dict[str, Optimizer] = {}
    for label, each in named.items():
        inner = unwrap_optimizer(each)
        if not isinstance(inner, Optimizer):
            raise WatchError(
                f"watch(optimizer=...): {label!r} is a {type(each).__module__}.{type(each).__qualname__}, "
                "not a torch.optim.Optimizer nor a wrapper with .optimizer. For loops of their own, "
                "watch the model alone and call watch.step() before each update."
            )
        found[label] = inner
    if not found:
        raise WatchError("watch(optimizer=...) holds no optimizer.")
    return found


def visible_scaler(given: object) -> Any:
    """Return the GradScaler that Accelerate's wrapper shows, if it does."""
    each = next(iter(given), None) if isinstance(given, Sequence) else given
    return getattr(each, "scaler", None)


def lay_out(
    optimizers: Mapping[str, Optimizer],
    names: Names,
    *,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    groups: Mapping[str, str] | None,
    gates: Gates | None,
    log: LogOnce,
) -> dict[str, Layout]:
    """Return each optimizer's tensors, and say where there is something odd about them.

    Raises:
        WatchError: A tensor of which this rank holds only a part.
    """
    layouts = {}
    for label, optimizer in optimizers.items():
        layout = layouts[label] = Layout(names, optimizer, include, exclude, groups, gates)
        layout.refresh()
        _warn_unrelated(label, layout, log)
    return layouts


def _warn_unrelated(label: str, layout: Layout, log: LogOnce) -> None:
    if not layout.names.covers(layout.optimizer):
        log(
            f"unrelated {label}",
            f"optimizer {label!r} and the model have no parameter in common: was it built "
            "before the model was replaced? Its tensors are watched under their positions.",
        )
    elif not layout.tensors:
        log(
            f"empty {label}",
            f"optimizer {label!r} has no tensor that is trained and chosen by include and "
            "exclude; it is watched in case some are added.",
        )
