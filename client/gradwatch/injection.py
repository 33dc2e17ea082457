"""What ``gradwatch exec`` does inside a script that knows nothing of gradwatch."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import nn
from torch.optim import Optimizer

from gradwatch import clip
from gradwatch.clipping.policies import Policy
from gradwatch.errors import PolicyError
from gradwatch.watching.start import MOST_OPTIMIZERS, is_watched, watch

__all__ = ["POLICIES", "parse_clip", "watch_everything"]

# Name to what makes the policy of its number, and of nothing where the policy has a default.
# `gradwatch exec` knows the same names (gradwatch_cli/commands/exec.py) without importing torch.
POLICIES: dict[str, Callable[..., Policy]] = {
    "value": clip.value,
    "norm": clip.norm,
    "per_tensor": clip.per_tensor,
    "agc": clip.agc,
    "value_rms": clip.value_rms,
    "adaptive": lambda word="balanced": clip.adaptive(preference=word),
    "recommended": lambda c: clip.recommended(clip.norm(c)),
    "spike_skip": lambda n=5: clip.spike_skip(_whole(n)),
    "autoclip": clip.published.autoclip,
    "zclip": clip.published.zclip,
    "adagc": clip.published.adagc,
    "quantile": clip.published.quantile,
}
WORDS = ("adaptive",)  # take a word where the others take a number

_logger = logging.getLogger("gradwatch")
Kind = TypeVar("Kind")


def parse_clip(text: str | None) -> Policy | None:
    """Read ``value=1.0``, or several joined by commas to a chain.

    Raises:
        PolicyError: Another policy, or a number that cannot limit anything.

    Example:
        >>> parse_clip("value=1.0,norm=0.5").kind
        'chain'
        >>> parse_clip("adaptive=tight").preference
        'tight'
    """
    if not text:
        return None
    parts = [_parse_one(part.strip()) for part in text.split(",")]
    return parts[0] if len(parts) == 1 else clip.chain(*parts)


def _parse_one(part: str) -> Policy:
    name, equals, given = part.partition("=")
    if name not in POLICIES:
        raise PolicyError(f"{part!r}: know {', '.join(POLICIES)}, as in value=1.0 or adaptive.")
    make = POLICIES[name]
    try:
        if not equals:
            return make()
        return make(given) if name in WORDS else make(float(given))
    except (ValueError, TypeError) as error:
        raise PolicyError(f"{part!r}: {error}") from None


def _whole(number: float) -> int:
    if not float(number).is_integer():
        raise PolicyError("give a whole number.")
    return int(number)


def watch_everything(optimizer: Optimizer) -> None:
    """Watch all optimizers of this process, with the model that holds their parameters.

    Called inside the first step of the first optimizer, whose gradients are the first that count.
    A script that watches itself is left alone.
    """
    found = [each for each in _living(Optimizer) if each.param_groups]
    if any(is_watched(each) for each in found):
        return
    if len(found) > MOST_OPTIMIZERS:
        _logger.warning(
            "gradwatch exec: %d optimizers, one per parameter it seems; this is not watched. "
            "Call gradwatch.watch() in the script.",
            len(found),
        )
        return
    named = {"default": optimizer}
    for number, each in enumerate(other for other in found if other is not optimizer):
        named[f"optimizer_{number + 1}"] = each
    watch(_model_of(optimizer), named, clip=parse_clip(os.environ.get("GRADWATCH_EXEC_CLIP")))


def _model_of(optimizer: Optimizer) -> nn.Module | None:
    """Return the outermost module that holds the optimizer's parameters, for their names."""
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    best: tuple[int, nn.Module] | None = None
    for module in _living(nn.Module):
        held = len(wanted & {id(p) for p in module.parameters()})
        size = sum(1 for _ in module.modules())
        if held and (best is None or (held, size) > (best[0], sum(1 for _ in best[1].modules()))):
            best = (held, module)
    return None if best is None else best[1]


def _living(kind: type[Kind]) -> Iterator[Kind]:
    # type() and not isinstance(): lazy objects answer the latter by importing half the world.
    return (each for each in gc.get_objects() if issubclass(type(each), kind))
