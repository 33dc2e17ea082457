"""Scalars on their way out: taken in on the training thread, read on the background thread."""

import math
import numbers
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Scalar", "accept", "read"]

Scalar = float | Tensor


def accept(value: object) -> Scalar | None:
    """Take a logged value without reading it.

    A tensor is copied on its own device: the loop may change its loss in place, and holding the
    loss itself would keep the whole graph alive. Nothing waits for the device.

    Args:
        value: A number, or a tensor with one element.

    Returns:
        What the background thread will read, or None when this is not a number.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            return None
        with torch.no_grad():
            return value.detach().reshape(()).clone()
    if isinstance(value, numbers.Real):
        return float(value)
    # numpy scalars that are no numbers.Real (bool_) and one-element arrays: anything with item().
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 1) == 1:
        number = item()
        return float(number) if isinstance(number, numbers.Real) else None
    return None


def read(scalars: Mapping[str, Scalar]) -> dict[str, float]:
    """Turn accepted scalars into numbers; called on the background thread only.

    Args:
        scalars: Name to number or one-element tensor.

    Returns:
        Name to float. A value that is not finite becomes NaN (sent as null) and is counted in
        the additional scalar ``<name>_nonfinite`` = 1.0.
    """
    numbers_: dict[str, float] = {}
    for name, value in scalars.items():
        number = float(value)
        if math.isfinite(number):
            numbers_[name] = number
        else:
            numbers_[name] = math.nan
            numbers_[f"{name}_nonfinite"] = 1.0
    return numbers_
