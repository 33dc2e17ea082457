"""The recommendation that a job's own policy follows, kept current at a bounded cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.queries.histograms import magnitude_history
from gradwatch_service.queries.reading import select
from gradwatch_service.recommenders.answer import answer
from gradwatch_service.recommenders.base import Asked
from gradwatch_service.recommenders.elementwise import answer_value
from gradwatch_service.recommenders.norm import NormState
from gradwatch_service.store.base import Store

__all__ = ["Following", "followed_kind"]

# Elementwise limits are worked out from stored histograms; a client asks for them every 50 steps.
VALUE_SECONDS = 2.0


def followed_kind(policy: Mapping[str, Any] | None) -> Literal["norm", "value"]:
    """What kind of threshold a registered policy follows; ``norm`` unless it asks for elements."""
    if policy is None:
        return "norm"
    if policy.get("kind") == "recommended":
        base = policy.get("base")
        kind = base.get("kind") if isinstance(base, Mapping) else None
        return "value" if kind == "value" else "norm"
    inner = policy.get("policies")
    parts = [p for p in inner if isinstance(p, Mapping)] if isinstance(inner, list) else []
    return "value" if any(followed_kind(part) == "value" for part in parts) else "norm"


class Following:
    """Answers for one run what travels with ingest answers. Used from one thread.

    Args:
        store: Where histograms are read.
        run: Run id.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._due = 0.0
        self._value: dict[str, Any] | None = None

    def answer(self, state: NormState, context: RunContext, now: float) -> dict[str, Any]:
        """The newest recommendation of the kind that the job follows.

        Args:
            state: What the norm rule remembers.
            context: The stream, with the policy as registered.
            now: A clock in seconds that never goes back.
        """
        if followed_kind(context.policy) == "norm":
            return answer(state, context)
        if self._value is None or now >= self._due:
            found = select(self._store, self._run, optimizer=context.optimizer)
            history = magnitude_history(self._store, found)
            self._value = answer_value(history, Asked(), context=context) | {"run": self._run}
            self._due = now + VALUE_SECONDS
        return self._value
