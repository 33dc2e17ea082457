"""What is known of every run right now: counters kept in the commit, newest values, state.

``/metrics`` is written from here and never reads the store.
"""

from gradwatch_service.live.counters import EMPTY, Counters, add
from gradwatch_service.live.record import dump, load
from gradwatch_service.live.summary import Summary, summarise

__all__ = ["EMPTY", "Counters", "Summary", "add", "dump", "load", "summarise"]
