"""A policy at work on a fixed list of tensors: the one place where clipping and measuring meet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwatch.clipping.buffer import Buffer
from gradwatch.clipping.execution import NONFINITE, Execution
from gradwatch.clipping.extras import Extras, Wanted
from gradwatch.clipping.gradients import Prepared, prepare
from gradwatch.clipping.held import Held
from gradwatch.clipping.passes import plan
from gradwatch.clipping.policies import Agc, Policy, Recommended, as_policy, walk
from gradwatch.clipping.stages import Reduce, Situation, Stage
from gradwatch.errors import GradientError, PolicyError
from gradwatch.kernels import Kernel, check_name, choose, new_rows
from gradwatch.statistics import GradStats

__all__ = ["Clipper"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known about the gradients before looking at their values, on their device."""

    key: object
    numel: Tensor
    dtypes: Sequence[tuple[torch.dtype, Tensor | None]]


class Clipper:
    """Clips and measures the same tensors step after step.

    Args:
        policy: What :func:`gradwatch.clipping.policies.as_policy` takes; None measures only.
        names: One name per tensor; needed by mappings of name patterns.
        nonfinite: ``keep`` leaves NaN and holds infinities at a limit, ``zero`` sets both to zero
            before clipping, ``skip`` empties all gradients of a step that has any.
        kernel: ``auto``, ``reference``, ``cpu`` or ``cuda``.
        optional: Further statistics: ``cosine_previous``, ``cosine_momentum``, ``weight_norm``,
            ``update_norm``, from samples of large tensors; see :mod:`gradwatch.clipping.extras`.
        optional_every: Steps between them.
        histogram_every: Steps between histograms of magnitudes; 0 takes none.
        histogram_exact: Look at every element instead of an eighth of them.
        reduce: Joins norms over ranks for norm policies on shards: takes this rank's [T] sums (or
            maxima) and "sum" (or "max"), returns those of the whole tensors.

    Raises:
        PolicyError: Not a policy, or an unknown ``nonfinite``.
        KernelError: The kernel cannot run here.

    Example:
        >>> import torch, gradwatch
        >>> clipper = gradwatch.Clipper(gradwatch.clip.value(1.0))
        >>> stats = clipper.clip_([torch.tensor([3.0, -0.5])])
        >>> stats.clipped_count.tolist()
        [1.0]
    """

    def __init__(
        self,
        policy: Policy | Mapping[str, Policy | None] | None,
        names: Sequence[str] | None = None,
        *,
        nonfinite: str = "keep",
        kernel: str = "auto",
        optional: Sequence[str] = (),
        optional_every: int = 1,
        histogram_every: int = 0,
        histogram_exact: bool = False,
        reduce: Reduce | None = None,
    ) -> None:
        if nonfinite not in NONFINITE:
            raise PolicyError(f"nonfinite={nonfinite!r}: choose one of {', '.join(NONFINITE)}.")
        check_name(kernel)
        self.policy = as_policy(policy)
        self.names = None if names is None else list(names)
        self.nonfinite = nonfinite
        self.kernel_fallback: str | None = None
        self._asked = kernel
        self._used: dict[torch.device, Kernel] = {}
        self._reduce = reduce
        slices = 1 if histogram_exact else 8
        wanted = Wanted(tuple(optional), optional_every, histogram_every, slices)
        self._extras = Extras(wanted)
        self._passes = plan(self.policy, self.names)
        more = [column for stage in self._stages() for column in stage.columns]
        self._optional = tuple(dict.fromkeys([*wanted.optional, *more]))
        self._bound: tuple[torch.device, int] | None = None
        self._shape: Shape | None = None
        self._step = 0

    @property
    def kernel(self) -> str:
        """Names of the kernels in use so far; ``auto`` before the first step."""
        return "+".join(sorted({k.name for k in self._used.values()})) or self._asked

    @property
    def interval(self) -> int | None:
        """Steps between changes of a recommended threshold; None when no part follows the service."""
        found = [p.interval for p in walk(self.policy) if isinstance(p, Recommended)]
        return min(found, default=None)

    @torch.no_grad()
    def clip_(
        self,
        grads: Sequence[Tensor | None],
        parameters: Sequence[Tensor | None] | None = None,
        step: int | None = None,
        momenta: Sequence[Tensor | None] | None = None,
        learning_rate: float | Tensor | None = None,
    ) -> GradStats:
        """Clip the gradients in place and return what they were like. Reads nothing back.

        Args:
            grads: One gradient or None per tensor, in the order of ``names``.
            parameters: Their parameters; agc and norms of weights and updates need them.
            step: Number of this step; counts on from the last one when left out.
            momenta: The optimizer's momentum buffers, for ``cosine_momentum``.
            learning_rate: The step's rate; ``adaptive`` stands still for a while when it changes.

        Raises:
            GradientError: A gradient that cannot be clipped in place; nothing was changed.
        """
        prepared = prepare(grads, self.names)
        self._refuse(prepared, parameters)
        step = self._step if step is None else step
        device = prepared.devices[0] if prepared.devices else torch.device("cpu")
        count = len(prepared.numel)
        self._bind(device, count)
        buffer = Buffer(self._passes, count, device, self._optional)
        shape = self._shape_on(device, prepared)
        held = Held(buffer.rows, shape.dtypes)
        execution = Execution(prepared, self._kernel_for, buffer.rows, held)
        now = Situation(
            prepared.gradients, parameters, buffer.rows, shape.numel, self._reduce, learning_rate
        )
        extra = self._extras.measure(step, execution.groups, shape.numel, parameters, momenta)
        execution.run_(self._passes, now, step, self.nonfinite, extra.histograms)
        extra.rows |= now.measured
        stats = buffer.finish(step, execution.skipped, self.names, extra)
        for stage in self._stages():
            if stage.is_active(step):
                stage.update(now)
        self._step = step + 1
        return stats

    def extend(self, names: Sequence[str]) -> None:
        """Add tensors at the end of the list; thresholds and state of the others stay.

        Raises:
            PolicyError: The Clipper was made without names.
        """
        if self.names is None:
            raise PolicyError("extend: this Clipper was made without names.")
        self.names += names
        old = self._stages()
        self._passes = plan(self.policy, self.names)
        for new, known in zip(self._stages(), old, strict=True):
            new.tensors, new.version = known.tensors, known.version
        self._bound = None

    def follow(self, threshold: float | Mapping[str, float], version: int) -> None:
        """Clip with a recommended threshold from the next step on.

        Args:
            threshold: In gradient units (for agc a ratio); by tensor name for per_tensor.
            version: The recommendation's version, above 0.

        Raises:
            PolicyError: No part of the policy follows the service, or a threshold that is not
                finite, not above 0, or outside the policy's bounds. Nothing has changed then.
        """
        followers = [s for s in self._stages() if s.scope.follow is not None]
        if not followers:
            raise PolicyError("follow: no part of this policy is gradwatch.clip.recommended(...).")
        numbers = list(threshold.values()) if isinstance(threshold, Mapping) else [threshold]
        for stage in followers:
            follow = stage.scope.follow
            low = (follow.minimum if follow else None) or 0.0
            high = (follow.maximum if follow else None) or math.inf
            for number in numbers:
                if not (math.isfinite(number) and number > 0 and low <= number <= high):
                    raise PolicyError(
                        f"follow: threshold {number!r} is not a finite number above 0 "
                        f"between {low!r} and {high!r}."
                    )
        for stage in followers:
            stage.follow(threshold, version, self.names or ())

    @property
    def version(self) -> int:
        """Version of the recommendation in force; 0 while the policy's own threshold is."""
        return max((stage.version for stage in self._stages()), default=0)

    def state_dict(self) -> dict[str, Any]:
        """Return step, thresholds and state; loads with ``torch.load(weights_only=True)``."""
        stages = [
            {"version": s.version, "tensors": {n: t.cpu() for n, t in s.state().items()}}
            for s in self._stages()
        ]
        return {"format": 1, "step": self._step, "stages": stages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Raises:
            PolicyError: The state belongs to another policy; nothing has changed then.
        """
        stages, saved = self._stages(), state.get("stages", [])
        if state.get("format") != 1 or len(stages) != len(saved):
            raise PolicyError(
                f"load_state_dict: the state has {len(saved)} parts in format "
                f"{state.get('format')!r}, this policy has {len(stages)} in format 1: {self.policy!r}."
            )
        for stage, kept in zip(stages, saved, strict=True):
            stage.tensors = dict(kept["tensors"])
            stage.version = kept["version"]
        self._step = state["step"]
        self._bound = None

    def _stages(self) -> list[Stage]:
        return [stage for one in self._passes for stage in one.stages]

    def _refuse(self, prepared: Prepared, parameters: Sequence[Tensor | None] | None) -> None:
        count = len(prepared.numel)
        if self.names is not None and len(self.names) != count:
            raise GradientError(f"{count} gradients for {len(self.names)} names: give one each.")
        if parameters is not None and len(parameters) != count:
            raise GradientError(
                f"{count} gradients for {len(parameters)} parameters: give one each."
            )
        if not any(isinstance(p, Agc) for p in walk(self.policy)):
            return
        if parameters is None:
            raise GradientError("agc compares gradients with weights: pass the parameters too.")
        if any(odd.repeat > 1 or odd.implicit_zeros for odd in prepared.odd.values()):
            raise GradientError("agc needs whole rows: expanded and sparse gradients have none.")

    def _bind(self, device: torch.device, count: int) -> None:
        if self._bound != (device, count):
            like = new_rows(0, device)
            for stage in self._stages():
                stage.bind(like, count)
            self._bound = (device, count)

    def _shape_on(self, device: torch.device, prepared: Prepared) -> Shape:
        """Return sizes and dtypes as tensors; made anew only when the gradients change their kind."""
        dtypes = prepared.gradients.dtypes
        key = (device, prepared.numel, dtypes)
        if self._shape is None or self._shape.key != key:
            numel = torch.tensor(prepared.numel).to(new_rows(0, device))
            kinds = list(dict.fromkeys(d for d in dtypes if d is not None))
            masks = [torch.tensor([d is k for d in dtypes], device=device) for k in kinds]
            groups = [(kinds[0], None)] if len(kinds) == 1 else list(zip(kinds, masks, strict=True))
            self._shape = Shape(key, numel, groups)
        return self._shape

    def _kernel_for(self, device: torch.device) -> Kernel:
        if device not in self._used:
            self._used[device], reason = choose(self._asked, device)
            self.kernel_fallback = self.kernel_fallback or reason
        return self._used[device]
