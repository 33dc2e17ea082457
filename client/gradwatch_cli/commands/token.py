"""``gradwatch token``: who may report, read and administer; the file keeps hashes, never tokens."""

from pathlib import Path
from typing import Annotated

import typer

from gradwatch_cli.errors import CommandError
from gradwatch_service.access.callers import SCOPES
from gradwatch_service.access.tokens import TokenFileError, add_token, read_tokens, remove_token

__all__ = ["app"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

File = Annotated[Path, typer.Option("--file", "-f", help="Token file, as given to serve --tokens.")]
DEFAULT = Path("gradwatch-tokens.json")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What to call it; shown in place of the token.")],
    *,
    scope: Annotated[
        list[str] | None, typer.Option(help="ingest, read or admin; may repeat. [ingest, read]")
    ] = None,
    project: Annotated[str | None, typer.Option(help="The only project it may see.")] = None,
    file: File = DEFAULT,
) -> None:
    """Make a token and print it, this once. A running service knows it within two seconds."""
    scopes = scope or ["ingest", "read"]
    for given in scopes:
        if given not in SCOPES:
            raise CommandError(f"--scope {given!r}: allowed are {', '.join(SCOPES)}", code=2)
    try:
        print(add_token(file, name, scopes, project))
    except TokenFileError as error:
        raise CommandError(str(error), code=2) from None


@app.command("list")
def list_tokens(*, file: File = DEFAULT) -> None:
    """List names, scopes and projects."""
    try:
        tokens = read_tokens(file)
    except TokenFileError as error:
        raise CommandError(str(error), code=2) from None
    for token in sorted(tokens.values(), key=lambda token: token.name):
        print(f"{token.name}\t{','.join(token.scopes)}\t{token.project or 'all projects'}")


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the token.")], *, file: File = DEFAULT
) -> None:
    """Remove a token. A running service refuses it within two seconds."""
    try:
        remove_token(file, name)
    except TokenFileError as error:
        raise CommandError(str(error), code=2) from None
    print(f"revoked {name}")
