"""Zero-centred gradient clipping and gradient diagnostics for PyTorch training jobs."""

from gradwatch import clip as clip
from gradwatch.clipping.clipper import Clipper as Clipper
from gradwatch.functional import clip_grad_ as clip_grad_
from gradwatch.functional import clip_grad_norm_ as clip_grad_norm_
from gradwatch.functional import clip_grad_value_ as clip_grad_value_
from gradwatch.query import QueryError as QueryError
from gradwatch.query import recommendation as recommendation
from gradwatch.statistics import GradStats as GradStats
from gradwatch.version import __version__ as __version__
from gradwatch.watching.health import Health as Health
from gradwatch.watching.start import watch as watch
from gradwatch.watching.watch import Watch as Watch

__all__ = [
    "Clipper",
    "GradStats",
    "Health",
    "QueryError",
    "Watch",
    "__version__",
    "clip",
    "clip_grad_",
    "clip_grad_norm_",
    "clip_grad_value_",
    "recommendation",
    "watch",
]
