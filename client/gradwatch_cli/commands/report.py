"""``gradwatch report``: one file about a run, to attach to a ticket."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gradwatch_cli.errors import CommandError
from gradwatch_cli.report.content import gather
from gradwatch_cli.report.html_form import as_html
from gradwatch_cli.report.markdown_form import as_markdown
from gradwatch_cli.rest import Rest, Url, print_json
from gradwatch_cli.tables import console

__all__ = ["command"]

FORMS = {".html": as_html, ".md": as_markdown}


def command(
    *,
    run: Annotated[str, typer.Argument(help="Run id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .html or .md file. [RUN.html]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    url: Url = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the report says as JSON; write no file.")
    ] = False,
) -> None:
    """Write one self-contained file about a run.

    Summary, incidents, recommended thresholds with their evidence, what other thresholds would have
    done, curves, largest tensors. The file loads nothing and runs nothing.
    """
    path = output or Path(f"{run}.html")
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise CommandError(f"{path}: give a name that ends in {' or '.join(FORMS)}", code=2)
    if path.exists() and not overwrite and not as_json:
        raise CommandError(f"{path} is there already; --overwrite replaces it", code=2)
    content = gather(Rest(url), run)
    if as_json:
        print_json(asdict(content))
        return
    try:
        path.write_text(form(content), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror or error}") from error
    console().print(f"{run}: {path}", highlight=False)
