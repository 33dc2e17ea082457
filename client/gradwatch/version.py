"""The version, a constant: importing gradwatch reads nothing but modules."""

__all__ = ["__version__"]

__version__ = "0.1.0"
