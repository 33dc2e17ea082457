"""Bodies in, durable deliveries out."""

from gradwatch_service.ingest.pipeline import Body, Ingest

__all__ = ["Body", "Ingest"]
