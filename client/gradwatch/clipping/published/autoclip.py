"""AutoClip: a percentile of the whole history of norms."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gradwatch.clipping.learned import JointPolicy, check, shrink
from gradwatch.clipping.stages import Scope, Stage
from gradwatch.clipping.window import WindowStage

__all__ = ["AutoClip"]


@dataclass(frozen=True)
class AutoClip(JointPolicy):
    """The joint norm is at most a percentile of all norms so far, the step's own included.

    Differences from the paper: a non-finite step does not enter the history; after ``history``
    steps the oldest norm leaves (the paper keeps all, which takes ever more memory and time); the
    authors' code adds 1e-6 to the norm before dividing, the paper's formula and this do not.

    Args:
        percentile: 10, as recommended, clips nine steps of ten; 100 never clips; above 0.
        history: Norms kept; 10 at least.

    Source:
        Seetharaman et al. 2020, "AutoClip: Adaptive gradient clipping for source separation
        networks", Algorithm 1, https://arxiv.org/abs/2007.14469
    """

    percentile: float = 10.0
    history: int = 10_000
    kind: ClassVar[str] = "autoclip"

    def __post_init__(self) -> None:
        check(self, "autoclip", "percentile", above=0, most=100)
        check(self, "autoclip", "history", whole=True, least=10, most=1_000_000)

    def stage(self, scope: Scope) -> Stage:
        """Return the stage that carries it out."""
        return _AutoClip(scope, self)


class _AutoClip(WindowStage):
    def __init__(self, scope: Scope, policy: AutoClip) -> None:
        super().__init__(scope, policy.history)
        self._share = policy.percentile / 100

    def judge(self, norm: Tensor, usable: Tensor) -> Tensor:
        self.remember(norm, usable)
        self.tensors["threshold"] = self.quantile(self._share)
        return shrink(self.threshold, norm)
