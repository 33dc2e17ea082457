"""Puts the service together as an ASGI application. Knows every route and nothing of their work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute

from gradwatch_service import problems
from gradwatch_service.access.gate import Gate
from gradwatch_service.exposition.middleware import RequestMetrics
from gradwatch_service.routes import ALL_ROUTERS
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Store
from gradwatch_service.wiring import Service, build

__all__ = ["create_app"]


def create_app(settings: Settings, store: Store) -> FastAPI:
    """Build the service around a store. Each call gives an app of its own, so tests share none.

    The app owns the store from its start-up on and closes it when it stops.
    """
    service = build(settings, store)
    app = FastAPI(
        title="gradwatch",
        version="1",
        summary="Gradient statistics of training jobs: stored, diagnosed, turned into thresholds.",
        # The documentation pages of FastAPI load scripts from elsewhere; the schema is enough.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_lifespan(service),
        generate_unique_id_function=_operation_id,
    )
    app.state.service = service
    problems.install(app)
    for router in ALL_ROUTERS:
        app.include_router(router)
    app.add_middleware(Gate, settings=settings, instruments=service.instruments)
    # Outermost, so that what the gate refuses is counted too.
    app.add_middleware(RequestMetrics, instruments=service.instruments)
    service.instruments.routes(
        (method, route.path)
        for router in ALL_ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    )
    return app


def _operation_id(route: APIRoute) -> str:
    # Generated clients name their methods after it: the function's name is what people would say.
    return route.name


def _lifespan(service: Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        watching = asyncio.create_task(service.instruments.watch_loop())
        try:
            yield
        finally:
            watching.cancel()
            service.drain()
            await asyncio.to_thread(service.stop)

    return lifespan
