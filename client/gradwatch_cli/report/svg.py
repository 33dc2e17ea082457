"""A curve as SVG: the mean as a line, from least to greatest as a band, so that spikes are seen."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gradwatch_cli.report.content import Chart

__all__ = ["drawn"]

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 220, 64, 22
Place = Callable[[float], float]


def drawn(chart: Chart, incidents: Iterable[Mapping[str, Any]]) -> str:
    """The chart as an SVG element; incidents are shaded, buckets with non-finite steps marked."""
    series = chart.series
    starts, ends = series["start_step"], series["end_step"]
    values = [v for key in ("min", "max") for v in series[key] if v is not None]
    log = chart.log and max(values) > 0
    if log:
        floor = max(values) * 1e-9
        values = [v for v in values if v > floor]
    low, high = _range(min(values), max(values), log=log)
    across = _across(starts[0], ends[-1])
    up = _up(low, high, log=log)
    parts = [_shade(item, across, starts[0], ends[-1]) for item in incidents]
    parts += [_grid(label, up(label)) for label in _labels(low, high, log=log)]
    middle = [across((a + b) / 2) for a, b in zip(starts, ends, strict=True)]
    for piece in _pieces(series["mean"]):
        at = [middle[i] for i in piece]
        top = [up(series["max"][i]) for i in piece]
        base = [up(series["min"][i]) for i in piece]
        parts.append(
            f'<path class="band" d="{_line(at, top)} {_line(at[::-1], base[::-1], "L")} Z"/>'
        )
        parts.append(
            f'<path class="mean" d="{_line(at, [up(series["mean"][i]) for i in piece])}"/>'
        )
    marks = [x for x, n in zip(middle, series["nonfinite_count"], strict=True) if n]
    parts += [f'<path class="bad" d="M{x:.1f} {HEIGHT - BOTTOM} v-8"/>' for x in marks]
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">{starts[0]}</text>')
    parts.append(f'<text x="{WIDTH - 4}" y="{HEIGHT - 6}" text-anchor="end">step {ends[-1]}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{chart.title}">'
        + "".join(parts)
        + "</svg>"
    )


def _across(first: int, last: int) -> Place:
    span = max(1, last - first)
    return lambda step: LEFT + (step - first) / span * (WIDTH - LEFT - 4)


def _up(low: float, high: float, *, log: bool) -> Place:
    room = HEIGHT - BOTTOM - 8

    def up(value: float) -> float:
        held = min(high, max(low, value))
        share = math.log(held / low) / math.log(high / low) if log else (held - low) / (high - low)
        return 8 + (1 - share) * room

    return up


def _range(low: float, high: float, *, log: bool) -> tuple[float, float]:
    if log:
        return low / 1.1, high * 1.1
    edge = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - edge, high + edge


def _labels(low: float, high: float, *, log: bool) -> list[float]:
    if not log:
        return [low + (high - low) * k / 4 for k in range(5)]
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    if len(powers) < 2:
        return [low * (high / low) ** (k / 3) for k in range(4)]
    return [10.0**p for p in powers][:: max(1, len(powers) // 5)]


def _pieces(means: Sequence[float | None]) -> list[list[int]]:
    """Runs of buckets that hold a value: a gap stays a gap."""
    known = [i for i, value in enumerate(means) if value is not None]
    cuts = [i for i, (a, b) in enumerate(pairwise(known), 1) if b != a + 1]
    return [known[a:b] for a, b in pairwise([0, *cuts, len(known)]) if b > a]


def _line(across: Sequence[float], up: Sequence[float], begin: str = "M") -> str:
    points = [f"{x:.1f} {y:.1f}" for x, y in zip(across, up, strict=True)]
    if len(points) == 1:
        points *= 2  # a line to itself: drawn as a dot
    return begin + " L".join(points)


def _grid(value: float, y: float) -> str:
    return (
        f'<path class="grid" d="M{LEFT} {y:.1f} H{WIDTH - 4}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    )


def _shade(item: Mapping[str, Any], across: Place, first: int, last: int) -> str:
    begin = max(first, min(last, item.get("onset_step") or item["opened_step"]))
    end = max(begin, min(last, item["last_step"] or item["opened_step"]))
    x, width = across(begin), max(2.0, across(end) - across(begin))
    return f'<rect class="incident" x="{x:.1f}" y="8" width="{width:.1f}" height="{HEIGHT - BOTTOM - 8}"/>'
