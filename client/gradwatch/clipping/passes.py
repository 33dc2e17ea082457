"""The order in which a policy's stages run over the gradients."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise, zip_longest

import torch
from torch import Tensor

from gradwatch.clipping.policies import Chain, Patterns, Policy, Recommended, Schedule
from gradwatch.clipping.stages import Scope, Situation, Stage, make_stage
from gradwatch.errors import PolicyError

__all__ = ["Pass", "plan"]


@dataclass(slots=True)
class Pass:
    """Stages that run together: each clips other tensors, or at other steps."""

    stages: list[Stage] = field(default_factory=list)

    def of_kind(self, kind: str, step: int) -> list[Stage]:
        """Return the active stages of one kind."""
        return [s for s in self.stages if s.kind == kind and s.is_active(step)]

    def limits(self, step: int, count: int) -> Tensor | None:
        """Return [count] element limits, ``inf`` for none; None when no tensor has one."""
        parts = [_masked(s, s.limits(), torch.inf) for s in self.of_kind("limit", step)]
        return _joined(parts, count, torch.minimum)

    def coefficients(self, step: int, now: Situation) -> Tensor | None:
        """Return [T] factors, 1 for none; None when no tensor is scaled."""
        parts = [_masked(s, s.coefficients(now), 1.0) for s in self.of_kind("scale", step)]
        return _joined(parts, len(now.grads), torch.mul)

    @property
    def differs(self) -> bool:
        """Whether tensors may have different thresholds in this pass, at any step."""
        return any(stage.differs for stage in self.stages)

    def threshold(self, step: int) -> Tensor | None:
        """Return the limit in force, [] or where tensors differ [T]; NaN and None for none."""
        active = [s for s in self.stages if s.is_active(step)]
        parts = [_masked(s, s.threshold, torch.inf) for s in active]
        if not parts:
            return None
        joined = functools.reduce(torch.minimum, parts)
        return torch.where(joined.isinf(), torch.nan, joined)


def plan(
    policy: Policy | None, names: Sequence[str] | None, scope: Scope | None = None
) -> list[Pass]:
    """Turn a policy into passes over the tensors of these names.

    Raises:
        PolicyError: The policy is a mapping of name patterns and there are no names.
    """
    scope = scope or Scope()
    match policy:
        case None:
            return []
        case Chain(policies):
            return [one for part in policies for one in plan(part, names, scope)]
        case Schedule(entries):
            spans = pairwise([0, *(step for step, _ in entries[1:]), None])
            parts = [
                plan(part, names, _within(scope, start or 0, stop))
                for (_, part), (start, stop) in zip(entries, spans, strict=True)
            ]
            return _side_by_side(parts)
        case Patterns(entries):
            return _side_by_side(_by_pattern(entries, names, scope))
        case Recommended(base):
            return [Pass([make_stage(base, replace(scope, follow=policy))])]
        case _:
            return [Pass([make_stage(policy, scope)])]


def _by_pattern(
    entries: tuple[tuple[str, Policy | None], ...], names: Sequence[str] | None, scope: Scope
) -> list[list[Pass]]:
    if names is None:
        raise PolicyError(
            "A mapping of name patterns needs names: pass model.named_parameters(), "
            "or use gradwatch.watch(model, optimizer)."
        )
    free = list(scope.members or [True] * len(names))
    parts = []
    for pattern, policy in entries:
        chosen = [f and fnmatchcase(n, pattern) for f, n in zip(free, names, strict=True)]
        free = [f and not c for f, c in zip(free, chosen, strict=True)]
        parts.append(plan(policy, names, replace(scope, members=tuple(chosen))))
    return parts


def _within(scope: Scope, start: int, stop: int | None) -> Scope:
    stops = [s for s in (scope.stop, stop) if s is not None]
    return replace(scope, start=max(scope.start, start), stop=min(stops, default=None))


def _side_by_side(parts: list[list[Pass]]) -> list[Pass]:
    columns = zip_longest(*parts, fillvalue=Pass())
    return [Pass([stage for part in column for stage in part.stages]) for column in columns]


def _masked(stage: Stage, value: Tensor, other: float) -> Tensor:
    return value if stage.mask is None else torch.where(stage.mask, value, other)


def _joined(
    parts: list[Tensor], count: int, join: Callable[[Tensor, Tensor], Tensor]
) -> Tensor | None:
    if not parts:
        return None
    return functools.reduce(join, parts).expand(count).contiguous()
