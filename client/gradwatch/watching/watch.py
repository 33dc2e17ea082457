"""The handle that ``gradwatch.watch(...)`` returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal, Self
from weakref import WeakMethod, finalize

from torch import Tensor

from gradwatch import shutdown
from gradwatch.console import LogOnce
from gradwatch.errors import PolicyError
from gradwatch.identity import Identity
from gradwatch.scalars import accept
from gradwatch.settings import Settings
from gradwatch.sinks.mirror import Sink
from gradwatch.statistics import GradStats
from gradwatch.watching.amp import ScalerHook, scaler_around
from gradwatch.watching.health import Health
from gradwatch.watching.hooks import unwrap_optimizer
from gradwatch.watching.outlet import Outlet
from gradwatch.watching.summary import Latest, Summary
from gradwatch.watching.tracked import Tracked

__all__ = ["Status", "Watch"]

Status = Literal["completed", "failed", "interrupted"]


@dataclass(slots=True, eq=False, kw_only=True, weakref_slot=True)
class Watch:
    """Watches one model's training. Made by :func:`gradwatch.watch`.

    Nothing here raises into the training loop, and nothing waits except ``flush`` and ``close``,
    both bounded. As a context manager it closes at the end of the block.
    """

    settings: Settings
    identity: Identity
    tracked: tuple[Tracked, ...]
    outlet: Outlet | None
    log_once: LogOnce = field(default_factory=LogOnce)
    stop_after: int | None = None
    _scaler: ScalerHook | None = None
    _rejected: int = 0
    _closed: bool = False
    _stop: bool = False

    def __post_init__(self) -> None:
        if self.outlet is not None:
            # Weakly: the reporter's thread must not keep the model alive.
            self.outlet.on_read = WeakMethod(self._on_read)
            finalize(self, self.outlet.close, "completed", 1.0)
        for tracked in self.tracked:
            tracked.outlet = self.outlet
            # Also what keeps a Watch alive that nobody has a name for.
            tracked.at_first_step = self._look_for_scaler
            if self.outlet is not None:
                self.outlet.announce(tracked)

    @property
    def run(self) -> str:
        """Run id, the same on every rank."""
        return self.identity.run

    @property
    def threshold(self) -> Tensor | float | None:
        """Threshold in force at the newest step, on its device; None without clipping.

        Of several policies or optimizers the first. Reading the number (``float(...)``) waits for
        the device; holding the tensor does not.
        """
        newest = self.tracked[0].stats
        return None if newest is None else newest.threshold

    @property
    def should_stop(self) -> bool:
        """Whether ``stop_on`` has been met; the loop decides what to do about it."""
        return self._stop

    def step(self, step: int | None = None) -> None:
        """Clip and measure now, for loops whose optimizer has no hooks or where they cannot run.

        Call it between ``backward()`` and the update. An optimizer hook that follows does not
        clip the same gradients again.

        Args:
            step: Number of this step, at least that of the next; None counts on.
        """
        if self._is_over("step"):
            return
        for tracked in self.tracked:
            if step is not None:
                tracked.step = step
            tracked.take_step()
            tracked.explicit = tracked.hook is not None

    def before_update(self, optimizer: object) -> GradStats | None:
        """Clip and measure one optimizer's gradients now; for frameworks that clip before they step.

        The hook of the optimizer's step that follows stands back.

        Args:
            optimizer: One of the watched optimizers, or a wrapper around it.

        Returns:
            The statistics on the device; None when it is not watched (any more).
        """
        inner = unwrap_optimizer(optimizer)
        for tracked in self.tracked:
            if tracked.optimizer is inner:
                return tracked.before_update()
        return None

    def log(self, step: int | None = None, **scalars: object) -> None:
        """Add scalars to the newest step whose hook has run.

        Tensors are taken as they are and read later by the background thread.

        Args:
            step: The step they belong to, if it is not the newest.
            **scalars: Name to number or tensor with one element. A value that is not finite is
                sent as null and counted in ``<name>_nonfinite``.
        """
        if self._is_over("log"):
            return
        for name, value in scalars.items():
            scalar = accept(value)
            if scalar is None:
                self._reject(
                    name,
                    f"log({name}=...) takes a number or a tensor with one element, got {type(value).__name__}; it is left out.",
                )
                continue
            for tracked in self.tracked:
                if not tracked.attach(name, scalar, step):
                    self._rejected += 1

    def last(self, optimizer: str | None = None) -> Latest | None:
        """Return the newest statistics that have reached the host; never waits for the device.

        Args:
            optimizer: Name of the optimizer; None is the first.

        Returns:
            The statistics, or None while there are none (or in mode ``disabled``).
        """
        if self.outlet is None:
            return None
        name = self.tracked[0].name if optimizer is None else optimizer
        return self.outlet.latest(name)

    def health(self) -> Health:
        """Return what works and what does not, without waiting."""
        return Health(
            mode=self.settings.mode,
            clipping=not self._closed and all(t.clipping for t in self.tracked),
            reporting=self.outlet is not None and all(t.outlet is not None for t in self.tracked),
            errors=sum(t.errors for t in self.tracked),
            steps={t.name: t.step for t in self.tracked},
            kernel={t.name: t.clipper.kernel for t in self.tracked},
            kernel_fallback={
                t.name: t.clipper.kernel_fallback for t in self.tracked if t.clipper.kernel_fallback
            },
            rejected_scalars=self._rejected,
            delivery=None if self.outlet is None else self.outlet.reporter.health(),
        )

    def add_sink(self, sink: Sink) -> None:
        """Write what is reported to another tracker too, from a thread of its own.

        ``close()`` closes it. Where nothing is reported (mode ``disabled``, ranks above 0) nothing
        is written.

        Args:
            sink: For example :class:`gradwatch.sinks.TensorBoard`, or anything with ``write(figures)``
                and ``close()``.
        """
        if self.outlet is not None and self.identity.rank == 0 and not self._is_over("add_sink"):
            self.outlet.add_sink(sink)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything so far is acknowledged or in the spool.

        Args:
            timeout: Seconds to wait at most; None is ``GRADWATCH_FLUSH_TIMEOUT``.

        Returns:
            Whether nothing is left.
        """
        if self.outlet is None:
            return True
        return self.outlet.reporter.flush(self._patience(timeout))

    def detach(self) -> None:
        """Stop clipping and measuring; the optimizers are as they were. Reports still go out."""
        for tracked in self.tracked:
            tracked.detach()
        if self._scaler is not None:
            self._scaler.remove()

    def close(self, timeout: float | None = None, *, status: Status = "completed") -> None:
        """Detach, deliver what is left, finish the run and print five lines.

        Args:
            timeout: Seconds to wait at most; None is ``GRADWATCH_FLUSH_TIMEOUT``.
            status: How the run ended.
        """
        if self._closed:
            return
        self._closed = True
        self.detach()
        shutdown.unregister(self)
        if self.outlet is not None:
            steps = max((t.step for t in self.tracked), default=0)
            self.outlet.close(status, self._patience(timeout), steps)

    def replace_by(self, newer: "Watch") -> None:
        """Close because an optimizer is watched anew: nothing is clipped twice."""
        if not self._closed:
            self.log_once(
                "replaced",
                f"run {self.run}: its optimizer is watched again as {newer.run}; the older Watch is closed.",
            )
            self.close(min(1.0, self.settings.flush_timeout))

    def close_at_exit(self, status: Status, timeout: float) -> None:
        """Close because the process ends."""
        self.close(min(timeout, self.settings.flush_timeout), status=status)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed job needs: step counters and every policy's state.

        Holds tensors, numbers and text only: ``torch.load(..., weights_only=True)`` reads it.
        """
        return {
            "version": 1,
            "run": self.identity.run,
            "world_size": self.identity.world_size,
            "optimizers": {t.name: t.state_dict() for t in self.tracked},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict()`` was taken.

        A state of other optimizers is taken as far as names agree and the rest is named in a
        warning; training goes on.
        """
        saved: Mapping[str, Any] = state.get("optimizers", {})
        for tracked in self.tracked:
            if tracked.name not in saved:
                self.log_once(
                    f"state {tracked.name}",
                    f"load_state_dict: no state for optimizer {tracked.name!r}, only for {sorted(saved)}; it starts afresh.",
                )
                continue
            try:
                tracked.load_state_dict(saved[tracked.name])
            except PolicyError as error:
                self.log_once(f"policy {tracked.name}", f"{error} It starts afresh.")
        before = state.get("world_size", self.identity.world_size)
        if before != self.identity.world_size:
            self.log_once(
                "world_size",
                f"load_state_dict: the state is of {before} ranks, there are {self.identity.world_size} now; going on as a new attempt.",
            )

    def use_scaler(self, scaler: Any) -> None:
        """Count the steps this GradScaler leaves out, and report its scale."""
        if not callable(getattr(scaler, "step", None)):
            self.log_once(
                "scaler",
                f"watch(scaler={type(scaler).__name__}): not a GradScaler, it has no step(); steps "
                "that are left out will not be counted.",
            )
            return
        self._scaler = ScalerHook(scaler, self.tracked)
        for tracked in self.tracked:
            tracked.grad_scale = self._scaler.scale

    def newest_recommendation(self) -> Mapping[str, Any] | None:
        """Return the newest recommendation that has arrived; None before the first, and above rank 0."""
        return None if self.outlet is None else self.outlet.reporter.recommendation

    def _look_for_scaler(self, tracked: Tracked) -> None:
        """Find the loop's GradScaler inside the first step; say so when another one was given."""
        around = scaler_around()
        if self._scaler is None:
            if around is not None and around.is_enabled():
                self.use_scaler(around)
        elif not self._scaler.inside and self._scaler.is_enabled:
            self.log_once(
                "scaler",
                f"watch(scaler=...): optimizer {tracked.name!r} is stepped without this scaler, so "
                "steps that another one leaves out cannot be counted; pass the scaler whose step() "
                "the loop calls.",
            )

    def _on_read(self, summary: Summary) -> None:
        if self.stop_after is not None and summary.nonfinite_in_a_row >= self.stop_after:
            self._stop = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            status: Status = "completed"
        else:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.close(status=status)

    def __reduce__(self) -> tuple[Any, ...]:
        # A model or trainer that holds a Watch must stay picklable; a copy watches nothing, and
        # needs no token: a pickle may lie on a disk that others read.
        return _closed_copy, (replace(self.settings, token=None), self.identity)

    def _patience(self, timeout: float | None) -> float:
        return self.settings.flush_timeout if timeout is None else max(0.0, float(timeout))

    def _is_over(self, call: str) -> bool:
        if self._closed:
            self.log_once(
                "closed", f"{call}() on a closed Watch does nothing; call gradwatch.watch() again."
            )
        return self._closed

    def _reject(self, name: str, message: str) -> None:
        self._rejected += 1
        self.log_once(f"scalar {name}", message)


def _closed_copy(settings: Settings, identity: Identity) -> Watch:
    copy = Watch(settings=settings, identity=identity, tracked=(), outlet=None)
    copy._closed = True
    return copy
