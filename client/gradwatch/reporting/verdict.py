"""What an answer of the service means for the request that got it. Pure."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

__all__ = ["Action", "Verdict", "judge_registration", "judge_report"]


class Action(Enum):
    """What to do next."""

    DONE = "done"  # acknowledged
    RETRY = "retry"  # the same again, later
    REGISTER = "register"  # register again, then the same
    DROP = "drop"  # never again
    STOP = "stop"  # send nothing any more


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do next, and why.

    Attributes:
        action: What to do.
        why: For people; empty when done.
        reason: Why steps are dropped, one of the wire's reasons; empty unless dropped.
        retry_after: Seconds the service asks for.
        answer: What it answered, when done.
        status: The HTTP status where it matters: when registering is to be repeated.
    """

    action: Action
    why: str = ""
    reason: str = ""
    retry_after: float = 0.0
    answer: Mapping[str, Any] = field(default_factory=dict)
    status: int = 0


def judge_report(
    status: int, headers: Mapping[str, str], body: bytes, *, sequence: int, now: float
) -> Verdict:
    """Judge the answer to one delivery.

    Only an answer that says what became of this very delivery counts as an acknowledgement: a
    portal or proxy that answers 200 to everything has stored nothing.

    Args:
        status: HTTP status.
        headers: Response headers.
        body: Response body.
        sequence: Number of the delivery.
        now: Unix seconds, for a ``Retry-After`` that is a date.
    """
    answer = _parsed(body)
    if status == 200:
        if isinstance(answer.get("stored"), bool) and answer.get("sequence") == sequence:
            return Verdict(Action.DONE, answer=answer)
        return Verdict(Action.RETRY, f"answered 200 with something else: {body[:60]!r}")
    code = answer.get("code")
    if status == 404 or (status == 409 and code == "manifest_unknown"):
        return Verdict(Action.REGISTER, _why(status, answer), status=status)
    return _judge_failure(status, headers, answer, now)


def judge_registration(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float
) -> Verdict:
    """Judge the answer to a registration; done means that it names attempt and manifest."""
    answer = _parsed(body)
    if status in {200, 201}:
        attempt = answer.get("attempt")
        if isinstance(attempt, int) and not isinstance(attempt, bool) and 0 <= attempt < 2**31:
            return Verdict(Action.DONE, answer=answer)
        return Verdict(Action.RETRY, f"answered {status} with something else: {body[:60]!r}")
    if status == 404:
        return Verdict(Action.RETRY, f"{_why(status, answer)}; is this the address of gradwatch?")
    return _judge_failure(status, headers, answer, now)


def _judge_failure(
    status: int, headers: Mapping[str, str], answer: Mapping[str, Any], now: float
) -> Verdict:
    why = _why(status, answer)
    if status in {401, 403, 410, 415}:
        return Verdict(Action.STOP, why)
    if status == 413:
        return Verdict(Action.DROP, why, reason="too_large")
    if 400 <= status < 500 and status not in {408, 425, 429}:
        return Verdict(Action.DROP, why, reason="rejected")
    return Verdict(Action.RETRY, why, retry_after=_retry_after(headers, now))


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _why(status: int, answer: Mapping[str, Any]) -> str:
    detail = answer.get("detail")
    return f"answered {status}: {detail[:200]}" if isinstance(detail, str) else f"answered {status}"


def _retry_after(headers: Mapping[str, str], now: float) -> float:
    given = headers.get("Retry-After", "").strip()
    try:
        seconds = float(given)
    except ValueError:
        until = _date(given)
        if until is None:
            return 0.0
        # By the service's own clock where it tells it: ours may be a day off.
        seconds = until - (_date(headers.get("Date", "")) or now)
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _date(text: str) -> float | None:
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
