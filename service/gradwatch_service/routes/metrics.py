"""What Prometheus scrapes, and where it finds the runs to scrape one by one."""

import gzip
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from gradwatch_service.access.callers import Reader, VisibleRun
from gradwatch_service.exposition.tensor_page import last_steps, tensor_page
from gradwatch_service.exposition.text import CONTENT_TYPE
from gradwatch_service.wiring import ServiceDep

router = APIRouter()

AcceptEncoding = Annotated[str, Header(alias="accept-encoding", include_in_schema=False)]
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}, "description": "Prometheus text format, 0.0.4."}
}


@router.get("/metrics", response_class=Response, responses=_TEXT)
def get_metrics(
    service: ServiceDep, caller: Reader, accept_encoding: AcceptEncoding = ""
) -> Response:
    """Metrics of every run that the caller may see, and of the service.

    A plain function: it runs in a thread, so that no request waits for a page to be written.
    """
    compressed = _reads_gzip(accept_encoding)
    body = service.exposition.body(project=caller.project, compressed=compressed)
    return _page(body, compressed=compressed)


@router.get("/metrics/runs/{run}", response_class=Response, responses=_TEXT)
def get_run_metrics(
    service: ServiceDep, record: VisibleRun, accept_encoding: AcceptEncoding = ""
) -> Response:
    """One series per tensor of one run, at its last step; for a scrape target of its own."""
    page = tensor_page(record, last_steps(service.store, record.run))
    service.instruments.series_dropped.labels("run").inc(page.dropped)
    compressed = _reads_gzip(accept_encoding)
    body = page.text.encode()
    return _page(gzip.compress(body, 1) if compressed else body, compressed=compressed)


@router.get("/api/v1/prometheus/targets")
def get_prometheus_targets(
    request: Request,
    service: ServiceDep,
    caller: Reader,
    project: Annotated[str | None, Query(max_length=128)] = None,
) -> list[dict[str, Any]]:
    """Scrape targets for Prometheus' HTTP service discovery: one per run that reports now.

    A bare list, as Prometheus demands. The targets are reached where this request was.
    """
    if project is not None and not caller.sees(project):
        return []
    now = service.live.clock()
    quiet = service.settings.value_ttl_seconds
    runs = service.live.runs(now, caller.project if project is None else project)
    prefix = request.scope.get("root_path", "").rstrip("/")
    return [
        {
            "targets": [request.url.netloc],
            "labels": {
                "__scheme__": request.url.scheme,
                "__metrics_path__": f"{prefix}/metrics/runs/{run.run}",
                "instance": run.run,
            },
        }
        for run in runs
        if now - run.active_at <= quiet
    ]


def _page(body: bytes, *, compressed: bool) -> Response:
    headers = {"Vary": "Accept-Encoding", "Cache-Control": "no-store"}
    if compressed:
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type=CONTENT_TYPE, headers=headers)


def _reads_gzip(accept: str) -> bool:
    """Whether an Accept-Encoding header takes gzip: named, and not with a weight of 0."""
    for part in accept.split(","):
        name, _, weight = part.strip().partition(";")
        if name.strip().lower() == "gzip":
            return weight.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
