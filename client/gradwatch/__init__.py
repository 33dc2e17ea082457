"""Zero-centred gradient clipping and gradient diagnostics for PyTorch training jobs."""

from gradwatch.version import __version__ as __version__

__all__ = ["__version__"]
