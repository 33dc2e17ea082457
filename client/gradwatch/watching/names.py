"""What parameters are called: as the user's model calls them."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Names", "unwrap_model"]

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
        self._names.clear()  # identities of parameters that are gone may have been given away
        for name, parameter in unwrap_model(self._model).named_parameters(remove_duplicate=False):
            first = self._names.setdefault(id(parameter), name)
            if name != first and name not in self.aliases.setdefault(first, []):
                self.aliases[first].append(name)

    def of(self, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
        """Return (name, parameter) for everything that needs a gradient, in the model's order.

        The model's order is close to that of its forward pass, so that read from its end a list of
        tensors is in backward order. What the model does not know comes last, in the optimizer's.
        """
        self._refresh()  # layers may have been added to the model since
        found: list[tuple[str, Tensor]] = []
        for position, group in enumerate(optimizer.param_groups):
            given: Sequence[str] = group.get("param_names", ())
            for index, parameter in enumerate(group["params"]):
                if parameter.requires_grad:
                    spare = given[index] if index < len(given) else f"group{position}.{index}"
                    found.append((self._names.get(id(parameter), spare), parameter))
        place = {known: number for number, known in enumerate(self._names)}
        return sorted(found, key=lambda each: place.get(id(each[1]), len(place)))

    def covers(self, optimizer: Optimizer) -> bool:
        """Say whether model and optimizer have a parameter in common; True without a model."""
        return self._model is None or any(
            id(parameter) in self._names
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
