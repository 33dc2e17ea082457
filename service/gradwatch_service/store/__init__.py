"""Where runs and their steps live. Everything outside sees only :class:`Store`."""

from gradwatch_service.store.base import Store

__all__ = ["Store"]
