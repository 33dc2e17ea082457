"""Bodies in, durable deliveries out."""

from gradwatch_service.ingest.pipeline import Body, Ingest, deliver

__all__ = ["Body", "Ingest", "deliver"]
