"""Errors a caller can act on. None of them is ever raised out of a training step."""

__all__ = ["GradientError", "GradwatchError", "KernelError", "PolicyError", "WatchError"]


class GradwatchError(Exception):
    """Base of every error that this library raises on purpose."""


class PolicyError(GradwatchError, ValueError):
    """A clipping policy was built with numbers that cannot clip anything."""


class WatchError(GradwatchError, ValueError):
    """A model, optimizer or option was given that cannot be watched."""


class GradientError(GradwatchError, TypeError):
    """A gradient cannot be clipped in place; nothing was changed."""


class KernelError(GradwatchError, RuntimeError):
    """A kernel was asked for by name that cannot run here."""
