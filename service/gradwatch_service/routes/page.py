"""The built-in page: a handful of static files, read once, under a strict content policy.

They hold no data and no secret, so they are open; everything the page shows it asks of the REST
interface, with the reader's token where the service wants one.
"""

import hashlib
from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response

__all__ = ["router"]

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}

HEADERS = {
    # Scripts, styles and answers from here only: nothing inline, no other host, no frame around it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class PageFile(NamedTuple):
    """One file of the page."""

    body: bytes
    media_type: str
    etag: str


def _read() -> dict[str, PageFile]:
    files = {}
    for entry in resources.files("gradwatch_service").joinpath("page").iterdir():
        media_type = MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            body = entry.read_bytes()
            files[entry.name] = PageFile(
                body, media_type, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            )
    return files


FILES = _read()

router = APIRouter(include_in_schema=False)


@router.get("/")
def get_page(request: Request) -> Response:
    """Answer with the page itself."""
    return _answer(FILES["index.html"], request)


@router.get("/page/{name}")
def get_page_file(name: str, request: Request) -> Response:
    """Answer with one of the page's scripts and styles; any other name is 404."""
    if name not in FILES:
        raise HTTPException(404, f"the page has no file {name!r}")
    return _answer(FILES[name], request)


def _answer(file: PageFile, request: Request) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)
