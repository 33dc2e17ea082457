"""A report as Markdown: for tickets that take no page; its charts are drawn in characters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradwatch_cli.commands.incidents import card
from gradwatch_cli.demo.chart import draw
from gradwatch_cli.report.content import Chart, Content

__all__ = ["as_markdown"]


def as_markdown(content: Content) -> str:
    """The whole document. Text from the run stands in code, where Markdown does nothing to it."""
    parts = [f"# {_plain(content.run)}", _table([("", ""), *content.facts])]
    parts += ["## Incidents", _cards(content.incidents) or "No incidents."]
    if content.notices:
        parts += ["## Notices", _cards(content.notices)]
    if content.advice:
        parts += ["## Recommended thresholds", *(_code(lines) for lines in content.advice)]
    if content.backtest:
        parts += ["## What limits on the norm would have done", _table(content.backtest)]
    if content.charts:
        parts += ["## Curves", *(_chart(chart) for chart in content.charts)]
    if content.tensors:
        parts += ["## Largest tensors", _table(content.tensors)]
    return "\n\n".join([*parts, f"*{_plain(content.footer)}*"]) + "\n"


def _cards(items: Iterable[Mapping[str, Any]]) -> str:
    return "\n\n".join(_code([line for line, _ in card(item)]) for item in items)


def _chart(chart: Chart) -> str:
    values = [math.nan if v is None else v for v in chart.series["max"]]
    known = [v for v in values if v > 0]  # NaN is not
    steps = f"steps {chart.series['start_step'][0]} to {chart.series['end_step'][-1]}"
    if not known:
        return f"**{chart.title}**, {steps}: 0 throughout"
    bottom, top = min(known) / 1.05, max(known) * 1.05
    # Its lower axis counts buckets; the steps are named above it.
    lines = draw({"*": values}, top=top, bottom=bottom)[:-1]
    return f"**{chart.title}**, greatest value, {steps}\n\n{_code(lines)}"


def _code(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [["| " + " | ".join(map(_plain, row)) + " |"] for row in rows]
    rule = "|" + "---|" * len(rows[0])
    return "\n".join([head[0], rule, *(line for (line,) in body)])


def _plain(text: str) -> str:
    """Text that Markdown leaves alone, also within a table."""
    for mark in "\\`*_<>[]|#":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
