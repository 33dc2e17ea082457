"""A report as one HTML page: no script, nothing loaded from anywhere."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gradwatch_cli.commands.incidents import card
from gradwatch_cli.report.content import Content
from gradwatch_cli.report.svg import drawn

__all__ = ["as_html"]

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; } h3 { font-size: 1em; }
table { border-collapse: collapse; } td, th { padding: .15em .9em .15em 0; text-align: left; }
td { vertical-align: top; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; margin: .6em 0; padding: .5em .8em; border-left: 3px solid #8888; }
pre.critical { border-color: #c33; } pre.warning { border-color: #c80; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.grid { stroke: #8884; } .mean { stroke: #27c; fill: none; stroke-width: 1.5; stroke-linecap: round; }
.band { fill: #27c; fill-opacity: .25; } .bad { stroke: #c33; stroke-width: 2; }
.incident { fill: #c33; fill-opacity: .15; } footer { margin-top: 3em; opacity: .7; }
"""


def as_html(content: Content) -> str:
    """The whole page. Every text from the run is escaped: names are what a job made up."""
    shaded = [i for i in content.incidents if i["status"] != "retracted"]
    charts = [f"<h3>{escape(c.title)}</h3>{drawn(c, shaded)}" for c in content.charts]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(content.run)}: gradients</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(content.run)}</h1>",
        _table([("", ""), *content.facts]),
        "<h2>Incidents</h2>",
        _cards(content.incidents, "No incidents."),
        *(["<h2>Notices</h2>", _cards(content.notices, "")] if content.notices else []),
        "<h2>Recommended thresholds</h2>" if content.advice else "",
        *(f"<pre>{escape(chr(10).join(lines))}</pre>" for lines in content.advice),
        "<h2>What limits on the norm would have done</h2>" if content.backtest else "",
        _table(content.backtest),
        "<h2>Curves</h2>" if charts else "",
        *charts,
        "<h2>Largest tensors</h2>" if content.tensors else "",
        _table(content.tensors),
        f"<footer>{escape(content.footer)}</footer></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _cards(items: Iterable[Mapping[str, Any]], none: str) -> str:
    made = []
    for item in items:
        text = "\n".join(line for line, _ in card(item))
        made.append(f'<pre class="{escape(item["severity"])}">{escape(text)}</pre>')
    return "\n".join(made) or f"<p>{none}</p>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head, *body = rows
    lines = [_row(head, "th")] if any(head) else []
    return "".join(["<table>", *lines, *(_row(row, "td") for row in body), "</table>"])


def _row(cells: Sequence[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"
