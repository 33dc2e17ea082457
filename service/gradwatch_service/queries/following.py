"""The recommendation that a job's own policy follows, kept current at a bounded cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.queries.histograms import magnitude_history
from gradwatch_service.queries.reading import select
from gradwatch_service.queries.tensor_answers import ratio_answer
from gradwatch_service.recommenders.answer import answer
from gradwatch_service.recommenders.base import Asked
from gradwatch_service.recommenders.elementwise import answer_value
from gradwatch_service.recommenders.norm import NormState
from gradwatch_service.store.base import Store

__all__ = ["Following", "followed_kind"]

# Limits of elements and of ratios are worked out from stored steps; a client asks every 50 steps.
STORED_SECONDS = 2.0
DEEPEST = 8  # policies inside policies; what is sent may go as deep as it likes
Kind = Literal["norm", "value", "agc"]


def followed_kind(policy: Mapping[str, Any] | None, depth: int = 0) -> Kind:
    """What kind of threshold a registered policy follows; ``norm`` unless it says otherwise."""
    if policy is None or depth > DEEPEST:
        return "norm"
    if policy.get("kind") == "recommended":
        base = policy.get("base")
        kind = base.get("kind") if isinstance(base, Mapping) else None
        return kind if kind in {"value", "agc"} else "norm"
    found = [followed_kind(part, depth + 1) for part in _parts(policy)]
    return next((kind for kind in found if kind != "norm"), "norm")


def _parts(policy: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The policies inside a chain, a schedule or a mapping of patterns."""
    found: list[Any] = []
    for name in ("policies", "steps", "patterns"):
        inner = policy.get(name)
        found += inner if isinstance(inner, list) else []
        found += inner.values() if isinstance(inner, Mapping) else []
    return [part for part in found if isinstance(part, Mapping)]


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
        self._stored: dict[str, Any] | None = None

    def answer(self, state: NormState, context: RunContext, now: float) -> dict[str, Any]:
        """The newest recommendation of the kind that the job follows.

        Args:
            state: What the norm rule remembers.
            context: The stream, with the policy as registered.
            now: A clock in seconds that never goes back.
        """
        kind = followed_kind(context.policy)
        if kind == "norm":
            return answer(state, context)
        if self._stored is None or now >= self._due:
            found = select(self._store, self._run, optimizer=context.optimizer)
            if kind == "agc":
                given = ratio_answer(self._store, found, Asked())
            else:
                history = magnitude_history(self._store, found)
                given = answer_value(history, Asked(), context=context)
            self._stored = given | {"run": self._run}
            self._due = now + STORED_SECONDS
        return self._stored
