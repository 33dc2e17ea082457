"""What Prometheus scrapes."""

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response

from gradwatch_service.access import Reader
from gradwatch_service.exposition.text import CONTENT_TYPE
from gradwatch_service.wiring import ServiceDep

router = APIRouter()

AcceptEncoding = Annotated[str, Header(alias="accept-encoding", include_in_schema=False)]


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text, 0.0.4."}},
)
def get_metrics(
    service: ServiceDep, caller: Reader, accept_encoding: AcceptEncoding = ""
) -> Response:
    """Metrics of every run that the caller may see, and of the service.

    A plain function: it runs in a thread, so that no request waits for a page to be written.
    """
    compressed = _reads_gzip(accept_encoding)
    body = service.exposition.body(project=caller.project, compressed=compressed)
    return Response(body, media_type=CONTENT_TYPE, headers=_headers(compressed=compressed))


def _reads_gzip(accept: str) -> bool:
    """Whether an Accept-Encoding header takes gzip: named, and not with a weight of 0."""
    for part in accept.split(","):
        name, _, weight = part.strip().partition(";")
        if name.strip().lower() == "gzip":
            return weight.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _headers(*, compressed: bool) -> dict[str, str]:
    headers = {"Vary": "Accept-Encoding", "Cache-Control": "no-store"}
    return {**headers, "Content-Encoding": "gzip"} if compressed else headers
