"""What a store refuses, and why."""

from __future__ import annotations

__all__ = [
    "DeletedRunError",
    "LimitReachedError",
    "ManifestConflictError",
    "SequenceConflictError",
    "StoreUnavailableError",
    "UnknownAttemptError",
    "UnknownManifestError",
    "UnknownRunError",
]


class UnknownRunError(LookupError):
    """There is no run of that id."""

    def __init__(self, run: str) -> None:
        super().__init__(f"no run {run!r} on this service; PUT /api/v1/runs/{{run}} registers one")
        self.run = run


class DeletedRunError(LookupError):
    """The run was deleted."""

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run!r} was deleted; choose another id")
        self.run = run


class UnknownAttemptError(LookupError):
    """The run has no such attempt."""

    def __init__(self, run: str, attempt: int) -> None:
        super().__init__(f"run {run!r} has no attempt {attempt}; the answer to PUT names it")
        self.attempt = attempt


class UnknownManifestError(LookupError):
    """No manifest of that hash is registered where the report says."""

    def __init__(self, run: str, manifest_hash: str) -> None:
        super().__init__(
            f"run {run!r} has no manifest {manifest_hash!r} for this attempt, optimizer and rank; "
            "register it with PUT and send the report again"
        )


class ManifestConflictError(ValueError):
    """The tensors do not go with those registered before."""


class SequenceConflictError(ValueError):
    """The identity is known with other content."""


class LimitReachedError(ValueError):
    """A limit of the settings does not allow one more."""


class StoreUnavailableError(RuntimeError):
    """The store cannot write at the moment; nothing was stored."""
