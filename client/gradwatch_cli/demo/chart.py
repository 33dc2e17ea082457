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
    labels = _labels(height, top, bottom)
    lines = [f"{labels.get(i, ''):>7} |{''.join(row)}" for i, row in enumerate(cells)]
    return [*lines, f"{'':7} +{'-' * width}", f"{'':9}{'0':<{width - 6}}{steps - 1:>6}"]


def _largest(values: Sequence[float], start: int, end: int) -> float | None:
    return max((x for x in values[start : max(end, start + 1)] if math.isfinite(x)), default=None)


def _row(value: float, height: int, top: float, bottom: float) -> int:
    held = min(max(value, bottom), top)
    share = math.log(held / bottom) / math.log(top / bottom)
    return round((1.0 - share) * (height - 1))


def _labels(height: int, top: float, bottom: float) -> dict[int, str]:
    """Row -> label: both edges, and round numbers where a row is free of other labels."""
    labels = {0: f"{top:.3g}", height - 1: f"{bottom:.3g}"}
    for exponent in range(math.floor(math.log10(bottom)), math.ceil(math.log10(top))):
        for digit in (1, 2, 3, 5):
            value = digit * 10.0**exponent
            row = _row(value, height, top, bottom)
            if bottom < value < top and not {row - 1, row, row + 1} & labels.keys():
                labels[row] = f"{value:.3g}"
    return labels
