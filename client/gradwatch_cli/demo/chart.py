"""A line chart in characters, for terminals and logs."""

import math
from collections.abc import Mapping, Sequence

__all__ = ["draw"]


def draw(
    curves: Mapping[str, Sequence[float]],
    *,
    width: int = 72,
    height: int = 14,
    top: float,
    bottom: float,
) -> list[str]:
    """Draw curves over a common axis, as lines of text.

    A column shows the largest finite value of the steps it covers, so a spike is never averaged away.
    What lies above ``top`` is drawn on the upper edge, where not one value is finite nothing is.

    Args:
        curves: One character to draw with -> values, oldest first. Later curves are drawn over earlier.
        width: Columns of the plot.
        height: Rows of the plot.
        top: Value of the upper edge, above ``bottom``; the axis is logarithmic.
        bottom: Value of the lower edge, above 0.
    """
    cells = [[" "] * width for _ in range(height)]
    steps = max(map(len, curves.values()), default=0)
    for mark, values in curves.items():
        for column in range(width):
            value = _largest(values, column * steps // width, (column + 1) * steps // width)
            if value is not None:
                cells[_row(value, height, top, bottom)][column] = mark
    labels = [_value(row, height, top, bottom) for row in range(height)]
    lines = [f"{label:>7.2f} |{''.join(row)}" for label, row in zip(labels, cells, strict=True)]
    return [*lines, f"{'':7} +{'-' * width}", f"{'':9}{'0':<{width - 6}}{steps - 1:>6}"]


def _largest(values: Sequence[float], start: int, end: int) -> float | None:
    return max((x for x in values[start : max(end, start + 1)] if math.isfinite(x)), default=None)


def _row(value: float, height: int, top: float, bottom: float) -> int:
    held = min(max(value, bottom), top)
    share = math.log(held / bottom) / math.log(top / bottom)
    return round((1.0 - share) * (height - 1))


def _value(row: int, height: int, top: float, bottom: float) -> float:
    return float(bottom * (top / bottom) ** (1.0 - row / (height - 1)))
