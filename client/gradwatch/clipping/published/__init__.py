"""Published adaptive rules, for comparison: ``gradwatch.clip.published.zclip()`` ...

Formulas, defaults and order are those of the papers; each rule's docstring names what differs. One
thing differs in all: a step with a non-finite element changes no state. As published, a single NaN
stays in the state of every one of them.
"""

from gradwatch.clipping.published.adagc import AdaGC
from gradwatch.clipping.published.autoclip import AutoClip
from gradwatch.clipping.published.quantile import Quantile
from gradwatch.clipping.published.zclip import ZClip

__all__ = ["adagc", "autoclip", "quantile", "zclip"]


def autoclip(percentile: float = 10.0, *, history: int = 10_000) -> AutoClip:
    """Limit the joint norm to a percentile of all norms so far. See :class:`.AutoClip`."""
    return AutoClip(percentile, history)


def zclip(
    z: float = 2.5,
    *,
    decay: float = 0.97,
    warmup: int = 25,
    max_norm: float | None = 1.0,
    factor: float = 1.0,
) -> ZClip:
    """Limit the joint norm when its z-score stands out. See :class:`.ZClip`."""
    return ZClip(z, decay, warmup, max_norm, factor)


def adagc(
    ratio: float = 1.05, *, decay: float = 0.98, warmup: int = 100, max_norm: float = 1.0
) -> AdaGC:
    """Limit each tensor's norm to a multiple of its own average. See :class:`.AdaGC`."""
    return AdaGC(ratio, decay, warmup, max_norm)


def quantile(share: float = 0.5, *, rate: float = 0.2, initial: float = 0.1) -> Quantile:
    """Limit the joint norm by a geometric tracker of a quantile. See :class:`.Quantile`."""
    return Quantile(share, rate, initial)
