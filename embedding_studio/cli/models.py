"""Commands for registered models: a method's versions, and the way back to an earlier one."""

from typing import Annotated

import typer

from embedding_studio.cli.context import client_of
from embedding_studio.cli.render import minute, print_table
from embedding_studio.plain import escape

app = typer.Typer(help="List a method's models, and go back to one.", no_args_is_help=True)
Method = Annotated[str, typer.Argument(metavar="METHOD", help="the method's name")]
Url = Annotated[str | None, typer.Option("--url", help="the API's address, if not this machine's")]


@app.command("list")
def list_versions(method: Method, url: Url = None) -> None:
    """Show the versions of a method's model, newest first, and who moved the champion."""
    with client_of(url) as client:
        found = client.champion(method)
    rows = []
    for version in found.versions:
        state = "champion" if version.is_champion else "" if version.can_be_champion else "removed"
        verdict = version.promotion
        figures = f"{verdict.baseline:.4f} -> {verdict.best:.4f}" if verdict else ""
        reason = verdict.reason if verdict else ""
        made = minute(version.created_at)
        rows.append([str(version.version), state, made, version.task_id or "", figures, reason])
    print_table(["version", "state", "created", "task", "test", "verdict"], rows)
    rows = []
    for move in found.moves:
        from_to = [str(move.from_version or ""), str(move.to_version)]
        rows.append([minute(move.at), *from_to, move.kind, move.by, move.why])
    typer.echo()
    print_table(["moved", "from", "to", "kind", "by", "why"], rows)


@app.command("rollback")
def roll_back(
    method: Method,
    version: Annotated[
        int | None, typer.Option(min=1, help="without it, the one before the present champion")
    ] = None,
    reason: Annotated[str, typer.Option(help="for the model's history")] = "",
    url: Url = None,
) -> None:
    """Make an earlier version champion; MLflow's alias follows within seconds."""
    with client_of(url) as client:
        found = client.roll_back(method, version, reason)
    typer.echo(escape(f"version {found.champion} is champion: models:/{found.name}@champion"))
