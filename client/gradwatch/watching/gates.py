"""The gates inside recurrent weights, which torch keeps stacked in one tensor."""

from torch import Tensor, nn

from gradwatch.watching.names import unwrap_model

__all__ = ["WHOLE", "Gates"]

WHOLE = slice(None)

# In the order in which torch stacks them, see the docs of torch.nn.LSTM and torch.nn.GRU.
_ORDER: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LSTM: ("input", "forget", "cell", "output"),
    nn.GRU: ("reset", "update", "new"),
    nn.LSTMCell: ("input", "forget", "cell", "output"),
    nn.GRUCell: ("reset", "update", "new"),
}
_STACKED = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Gates:
    """Splits the weights of LSTM and GRU layers into their gates.

    ``rnn.weight_hh_l0`` becomes ``rnn.weight_hh_l0.input``, ``.forget``, ``.cell`` and ``.output``; layer
    and direction stand in torch's own name (``_l1``, ``_reverse``). Other tensors stay whole.

    Args:
        model: The model whose recurrent layers are looked into.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def of(self, parameter: Tensor) -> dict[str, slice]:
        """Return suffix to rows of a parameter; one empty suffix for one that has no gates."""
        for module in unwrap_model(self._model).modules():
            for kind, gates in _ORDER.items():
                if isinstance(module, kind) and _is_stacked_in(module, parameter):
                    rows = parameter.shape[0] // len(gates)
                    return {
                        f".{gate}": slice(number * rows, (number + 1) * rows)
                        for number, gate in enumerate(gates)
                    }
        return {"": WHOLE}


def _is_stacked_in(module: nn.Module, parameter: Tensor) -> bool:
    return any(
        own is parameter and name.startswith(_STACKED)
        for name, own in module.named_parameters(recurse=False)
    )
