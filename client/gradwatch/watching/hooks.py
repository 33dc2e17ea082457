"""The one place where gradwatch stands inside a training step: the optimizer's step hooks.

The hook sees what the optimizer is about to use: accumulated, reduced over ranks, unscaled. With a
closure the gradients only exist after it ran, inside ``step``; then the closure is wrapped and the
work is done each time it returns (Lightning always does it this way, LBFGS many times per step).
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch.optim import Optimizer

__all__ = ["Listener", "StepHook", "unwrap_optimizer"]

_REASON = (
    "gradwatch clips and measures outside of compiled graphs. With fullgraph=True watch the model alone, "
    "gradwatch.watch(model, clip=...), and call watch.step() before the compiled update."
)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Closure = Callable[[], Any]
Hook = TypeVar("Hook", bound=Callable[..., Any])


class Listener(Protocol):
    """What a :class:`StepHook` calls. Neither method may raise."""

    def on_gradients(self, optimizer: Optimizer, evaluation: int | None) -> None:
        """Gradients are there. ``evaluation`` counts a closure's runs in this step from 0, else None."""

    def on_stepped(self, optimizer: Optimizer) -> None:
        """The optimizer's step has returned."""


def unwrap_optimizer(optimizer: object) -> object:
    """Return the innermost optimizer: Accelerate's and Lightning's wrappers hold ``.optimizer``."""
    seen: set[int] = set()
    while not isinstance(optimizer, Optimizer) or _is_shell(optimizer):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or id(inner) in seen:
            break
        seen.add(id(inner))
        optimizer = inner
    return optimizer


def _is_shell(optimizer: Optimizer) -> bool:
    """Tell a wrapper that calls itself an Optimizer without being built as one (Accelerate's)."""
    return "_optimizer_step_pre_hooks" not in vars(optimizer) and hasattr(optimizer, "optimizer")


class StepHook:
    """Calls a listener once per optimizer step, or once per closure evaluation.

    The optimizer holds the hook and the hook its listener: ``gradwatch.watch(...)`` works without
    keeping what it returns, and both go when the optimizer goes.

    Args:
        optimizer: The optimizer to stand in front of.
        listener: Told about gradients and finished steps.
    """

    def __init__(self, optimizer: Optimizer, listener: Listener) -> None:
        self._listener: Listener | None = listener
        self._depth = 0
        self._handles = (
            optimizer.register_step_pre_hook(_outside_graphs(self._before)),
            optimizer.register_step_post_hook(_outside_graphs(self._after)),
        )

    def remove(self) -> None:
        """Leave the optimizer as it was. Closures that are already wrapped stop reporting."""
        for handle in self._handles:
            handle.remove()
        self._listener = None

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        if self._depth and not self._is_nested(optimizer):
            self._depth = 0  # the last step ended with an exception: its post hook never ran
        self._depth += 1
        listener = self._listener
        if self._depth > 1 or listener is None:
            return None
        # args[0] is the optimizer itself.
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._wrap(optimizer, args[1]), *args[2:]), kwargs
        if callable(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": self._wrap(optimizer, closure)}
        listener.on_gradients(optimizer, None)
        return None

    def _after(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        self._depth = max(0, self._depth - 1)
        listener = self._listener
        if self._depth == 0 and listener is not None:
            listener.on_stepped(optimizer)

    def _wrap(self, optimizer: Optimizer, closure: Closure) -> Closure:
        evaluation = 0

        def evaluate() -> Any:
            nonlocal evaluation
            loss = closure()
            listener = self._listener
            if listener is not None:
                listener.on_gradients(optimizer, evaluation)
            evaluation += 1
            return loss

        return evaluate

    def _is_nested(self, optimizer: Optimizer) -> bool:
        """Say whether another ``step`` of this optimizer is running around this one.

        A subclass that calls ``super().step()`` passes torch's hook wrapper twice. Only looked at when
        the depth says so, which after an exception in a step may be wrong; the stack never is.
        """
        # torch wraps every optimizer class's step in the same function.
        code = type(optimizer).step.__code__
        around = 0
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            around += frame.f_code is code and frame.f_locals.get("self") is optimizer
            frame = frame.f_back
        return around > 1  # one is the call that this hook runs in


def _outside_graphs(hook: Hook) -> Hook:
    """Keep torch.compile from tracing a hook; with fullgraph=True its error says what to do."""
    # Building an optimizer has imported torch._dynamo already, so this costs no import.
    outside: Hook = torch.compiler.disable(hook, reason=_REASON)  # type: ignore[no-untyped-call]  # torch's
    return outside
