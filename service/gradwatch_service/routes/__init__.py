"""Translate, call, answer: one small file per resource."""

from gradwatch_service.routes import (
    backtest,
    events,
    health,
    histogram,
    incidents,
    listing,
    metrics,
    page,
    recommendation,
    reports,
    runs,
    series,
    steps,
    stored,
    tensors,
)

__all__ = ["ALL_ROUTERS"]

ALL_ROUTERS = (
    runs.router,
    reports.router,
    steps.router,
    stored.router,
    listing.router,
    series.router,
    tensors.router,
    histogram.router,
    recommendation.router,
    backtest.router,
    incidents.router,
    events.router,
    metrics.router,
    page.router,
    health.router,
)
