"""One optimizer under watch: clip and measure at each step, hand the numbers over."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from gradwatch.clipping.clipper import Clipper
from gradwatch.console import LogOnce
from gradwatch.errors import WatchError
from gradwatch.reporting.sample import Sample
from gradwatch.scalars import Scalar
from gradwatch.statistics import STATISTICS, GradStats
from gradwatch.watching.amp import rescale_, scale_of, take_over_unscaling_
from gradwatch.watching.following import Following
from gradwatch.watching.hooks import StepHook
from gradwatch.watching.layout import Layout
from gradwatch.watching.replicas import weight_checksum
from gradwatch.watching.sampling import Sampling, rate_of

__all__ = ["SampleSink", "Tracked"]


class SampleSink(Protocol):
    """Where finished samples go. Constant time, never waits, never raises on purpose."""

    def announce(self, tracked: "Tracked") -> None:
        """The tensors or statistics of this optimizer are new, or more than before."""

    def put(self, sample: Sample) -> None:
        """Take one step's numbers."""


@dataclass(slots=True, eq=False, kw_only=True, weakref_slot=True)
class Tracked:
    """Clips, measures and reports the steps of one optimizer.

    Two guards, since clipping is training and reporting is not: an error while reporting ends the
    reporting, clipping goes on; an error while clipping ends both and says so. Neither reaches the loop.

    Args:
        name: Name of the optimizer in reports.
        optimizer: The optimizer, or a stand-in with ``param_groups``.
        layout: Its tensors.
        clipper: Clips and measures them.
        sampling: Makes the samples.
        log: Tells each trouble once.
        outlet: Takes the samples; None on ranks and in modes that report nothing.
        following: Moves the threshold at step boundaries, where the policy follows the service.
        grad_scale: Reads the loop's loss scale, where there is one.
        check_every: Steps between checksums of the weights, to notice ranks drifting apart; 0 for none.
        at_first_step: Called once, inside the first step that the hook sees.
    """

    name: str
    optimizer: Optimizer
    layout: Layout
    clipper: Clipper
    sampling: Sampling
    log: LogOnce
    outlet: SampleSink | None = None
    following: Following | None = None
    grad_scale: Callable[[], Scalar | None] | None = None
    at_first_step: Callable[["Tracked"], None] | None = None
    check_every: int = 0
    hook: StepHook | None = None
    step: int = 0
    errors: int = 0
    clipping: bool = True
    stats: GradStats | None = None
    columns: tuple[str, ...] = STATISTICS
    newest: Sample | None = None
    explicit: bool = False
    hook_calls: int = 0
    _waiting: Sample | None = None
    _evaluations: int = 0
    _extra: dict[str, Scalar] = field(default_factory=dict)

    def on_gradients(self, optimizer: Optimizer, evaluation: int | None) -> None:  # noqa: ARG002 - the Listener's form
        """Clip and measure what is in ``.grad`` now. Never raises."""
        self.hook_calls += 1
        if self.hook_calls == 1:
            self._first_call()
        if not self.explicit:  # else watch.step() has already dealt with these gradients
            self.take_step(evaluation)

    def on_stepped(self, optimizer: Optimizer) -> None:  # noqa: ARG002 - the Listener's form
        """Hand over the sample of a step with a closure: only now its evaluations are counted."""
        self.explicit = False
        sample, self._waiting = self._waiting, None
        if sample is not None:
            if self._evaluations > 1:
                sample.scalars["closure_evaluations"] = float(self._evaluations)
            self._hand_over(sample)

    def take_step(self, evaluation: int | None = None, *, skipped: bool = False) -> None:
        """Clip, measure and report one step, or one closure evaluation within it. Never raises.

        Of several evaluations each is clipped and the first is reported: it is the gradient at
        the point from which the step starts.

        Args:
            evaluation: Number of the closure's evaluation in this step, None without a closure.
            skipped: The optimizer leaves this step out.
        """
        if not self.clipping:
            return
        begun = time.perf_counter()
        repeated = evaluation is not None and evaluation > 0
        number = self.step - 1 if repeated else self.step
        try:
            grown = self.grow()
            stats = self._clip(number)
        except Exception as error:  # noqa: BLE001 - nothing may reach the training loop
            self._stop_clipping(number, error)
            return
        self.stats = stats
        self._evaluations = self._evaluations + 1 if repeated else 1
        if repeated:
            return
        self.step += 1
        if skipped:
            self._extra["skipped"] = 1.0
        try:
            self._report(number, stats, begun, grown=grown, waits=evaluation is not None)
        except Exception as error:  # noqa: BLE001 - nothing may reach the training loop
            self._stop_reporting(number, error)

    def before_update(self) -> GradStats | None:
        """Do the step's work ahead of the optimizer's hook, which then stands back. Never raises.

        Called again before the optimizer has stepped, it is another evaluation of the same step.
        """
        if not self.clipping or self.hook is None:
            return None
        self.take_step(1 if self.explicit else None)
        self.explicit = True
        return self.stats

    def skip_step(self) -> None:
        """Count a step that a GradScaler left out. Never raises."""
        if not self.explicit:
            self.take_step(skipped=True)
        elif self.newest is not None and not self.newest.packed:
            self.newest.scalars["skipped"] = 1.0  # watch.step() has counted it already
        self.explicit = False

    def grow(self) -> bool:
        """Follow the optimizer's groups; return whether tensors were added."""
        known = len(self.layout.tensors)
        grown = self.layout.refresh()
        if grown:
            self.clipper.extend([tensor.name for tensor in self.layout.tensors[known:]])
        return grown

    def attach(self, name: str, scalar: Scalar, step: int | None) -> bool:
        """Add a scalar to the newest step; return False when it comes too late for its step."""
        sample = self.newest
        if sample is None:
            return True  # a step between two reports is thinned, and its scalars with it
        if sample.packed or step not in {None, sample.step}:
            return False
        sample.scalars[name] = scalar
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return step counter, the policy's state and the threshold in force."""
        following = {} if self.following is None else self.following.state_dict()
        return {"step": self.step, "clipper": self.clipper.state_dict(), "following": following}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            PolicyError: The state is another policy's; the step counter is restored all the same.
        """
        self.step = int(state["step"])
        self.clipper.load_state_dict(state["clipper"])
        if self.following is not None:
            self.following.load_state_dict(state.get("following", {}))

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        self.clipping = False
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    @torch.no_grad()
    def _clip(self, number: int) -> GradStats:
        if _is_captured():
            raise WatchError(
                "this step is being captured in a CUDA graph. Its replays run no Python, so none of them "
                "would be measured. Watch the model alone, gradwatch.watch(model, clip=...), and call "
                "watch.step() between the captured backward pass and the update"
            )
        scaling = scale_of(self.optimizer)
        inverse = scaling.inverse
        changes = self.clipper.policy is not None or self.clipper.nonfinite != "keep"
        if inverse is not None and changes:
            take_over_unscaling_(self.optimizer, inverse)
        if self.following is not None:
            self.following(number)
        grads = self.layout.gradients(changes=changes)
        rate = rate_of(self.optimizer)
        stats = self.clipper.clip_(grads, self.layout.weights(), number, learning_rate=rate)
        if inverse is not None and not changes:
            rescale_(stats, inverse)
        self._extra = {}
        if self.following is not None:
            self._extra["recommendation_version"] = float(self.clipper.version)
        if scaling.found_inf is not None:
            # On the device: whether this step counts is only known there.
            self._extra["skipped"] = torch.maximum(
                stats.skipped, (scaling.found_inf > 0).to(stats.skipped)
            )
        if self.check_every and number % self.check_every == 0:
            checksum = weight_checksum(self.layout.weights())
            if checksum is not None:
                self._extra["weight_checksum"] = checksum
        if self.grad_scale is not None and (scale := self.grad_scale()) is not None:
            self._extra["grad_scale"] = scale
        return stats

    def _report(
        self, number: int, stats: GradStats, begun: float, *, grown: bool, waits: bool
    ) -> None:
        if self.outlet is None:
            return
        if grown or stats.columns != self.columns:
            self.columns = stats.columns
            self.outlet.announce(self)
        self.newest = sample = self.sampling.take(number, stats, self._extra, begun)
        if sample is None:
            return
        if waits:
            self._waiting = sample
        else:
            self.outlet.put(sample)

    def _first_call(self) -> None:
        try:
            if self.at_first_step is not None:
                self.at_first_step(self)
        except Exception as error:  # noqa: BLE001 - nothing may reach the training loop
            self.errors += 1
            self.log(
                f"first {self.name}", f"looking for a GradScaler failed: {error!r}", error=error
            )

    def _hand_over(self, sample: Sample) -> None:
        try:
            if self.outlet is not None:
                self.outlet.put(sample)
        except Exception as error:  # noqa: BLE001 - nothing may reach the training loop
            self._stop_reporting(sample.step, error)

    def _stop_clipping(self, number: int, error: Exception) -> None:
        self.errors += 1
        self.clipping = False
        self.log(
            f"clip {self.name}",
            f"watching {self.name!r} stopped at step {number}: {error!r}. Its gradients were left as "
            "they were; training goes on without clipping and without reports.",
            error=error,
        )

    def _stop_reporting(self, number: int, error: Exception) -> None:
        self.errors += 1
        self.outlet = None
        self.newest = None
        self.log(
            f"report {self.name}",
            f"reporting {self.name!r} stopped at step {number}: {error!r}. Clipping and training go on.",
            error=error,
        )


def _is_captured() -> bool:
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's
    return started and torch.cuda.is_current_stream_capturing()
