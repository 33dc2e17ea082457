"""Small questions to the service, for scripts: one answer, from the calling thread."""

import json
import math
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlencode

from gradwatch.errors import GradwatchError
from gradwatch.reporting.transport import is_loopback, may_carry
from gradwatch.settings import Settings, resolve

__all__ = ["QueryError", "recommendation"]

POLICIES = ("norm", "value", "per_tensor", "agc")
PREFERENCES = ("tight", "balanced", "guard")


class QueryError(GradwatchError, RuntimeError):
    """The service could not be asked or did not answer the question; the message says why.

    Attributes:
        status: HTTP status, or None when there was no answer at all.
        code: The service's short name of the problem, or None.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def recommendation(
    run: str,
    policy: str = "norm",
    url: str | None = None,
    *,
    preference: str = "balanced",
    default: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    prior: bool = False,
    removed_energy: float | None = None,
    optimizer: str | None = None,
) -> dict[str, Any]:
    """Ask the service which threshold it recommends for a run, and why.

    Args:
        run: Run id.
        policy: ``norm``, ``value``, ``per_tensor`` or ``agc``.
        url: Address of the service; None takes ``GRADWATCH_URL``, else this machine.
        preference: ``tight``, ``balanced`` or ``guard``.
        default: ``effective_threshold`` while there is no recommendation.
        minimum: ``effective_threshold`` is never below this.
        maximum: ``effective_threshold`` is never above this.
        prior: Let earlier runs of the same model speak while this one has few norms (``norm``).
        removed_energy: Share of the gradient's energy that clipping may remove (``value``); 0.01.
        optimizer: Name of one of several optimizers.

    Returns:
        The service's answer: ``threshold``, ``effective_threshold``, ``interval``, ``status``,
        ``reason``, ``backtest`` and more. With ``default`` given, ``effective_threshold`` is a
        number whatever the service knows.

    Raises:
        QueryError: An argument is not allowed, or the service did not answer.

    Example:
        >>> advice = recommendation("my-run", default=1.0)  # doctest: +SKIP
        >>> torch.nn.utils.clip_grad_norm_(parameters, advice["effective_threshold"])  # doctest: +SKIP
    """
    _one_of("policy", policy, POLICIES)
    _one_of("preference", preference, PREFERENCES)
    bounds = {"default": default, "min": minimum, "max": maximum}
    for name, value in bounds.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise QueryError(f"recommendation({name}={value!r}): give a finite number above 0.")
    query = {"policy": policy, "preference": preference}
    if prior:
        query["prior"] = "true"
    if optimizer is not None:
        query["optimizer"] = optimizer
    if removed_energy is not None:
        if not 0 < removed_energy < 1:
            raise QueryError(
                f"recommendation(removed_energy={removed_energy!r}): give a share between 0 and 1."
            )
        query["removed_energy"] = repr(float(removed_energy))
    query |= {name: repr(float(value)) for name, value in bounds.items() if value is not None}
    path = f"/runs/{quote(run, safe='')}/recommendation?{urlencode(query)}"
    answer = _get(resolve(url=url), path)
    if not isinstance(answer, dict):
        raise QueryError("the service answered something that is no recommendation")
    return answer


def _get(settings: Settings, path: str) -> Any:
    request = urllib.request.Request(  # noqa: S310 - resolve() lets only http and https through
        f"{settings.url}/api/v1{path}", headers={"Accept": "application/json"}
    )
    if settings.token and may_carry(settings.url, insecure=settings.insecure):
        request.add_unredirected_header("Authorization", f"Bearer {settings.token}")
    try:
        with _opener(settings.url).open(request, timeout=settings.timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise _refused(error) from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise QueryError(f"no service answers at {settings.url}: {reason}") from error
    except ValueError as error:
        raise QueryError(f"{settings.url} does not answer as a gradwatch service") from error


def _opener(url: str) -> urllib.request.OpenerDirector:
    """This machine is never asked through a proxy."""
    proxies = urllib.request.ProxyHandler({}) if is_loopback(url) else urllib.request.ProxyHandler()
    return urllib.request.build_opener(proxies)


def _refused(error: urllib.error.HTTPError) -> QueryError:
    try:
        problem = json.load(error)
        detail, code = str(problem["detail"]), str(problem["code"])
    except (ValueError, KeyError, TypeError):
        detail, code = f"the service answered {error.code} {error.reason}", None
    return QueryError(detail, status=error.code, code=code)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise QueryError(f"recommendation({name}={value!r}): allowed are {', '.join(allowed)}.")
