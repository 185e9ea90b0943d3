"""Commands for registered models: a method's versions, a person's promotion, the way back."""

from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import client_of
from embedding_studio.cli.render import minute, print_table
from embedding_studio.plain import escape

if TYPE_CHECKING:
    from embedding_studio.wire.models import ChampionView, WishView

app = typer.Typer(
    help="List a method's models, promote one by hand, and go back to one.", no_args_is_help=True
)
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
    if found.wanted is not None:
        typer.echo(f"\n{_say_wanted(found.wanted)}")


@app.command("promote")
def promote_task(
    task: Annotated[str, typer.Argument(metavar="TASK", help="the task's id")],
    reason: Annotated[str, typer.Option(help="for the model's history")] = "",
    url: Url = None,
) -> None:
    """Make a task's model champion, whatever its verdict was."""
    with client_of(url) as client:
        found = client.promote_task(task, reason)
    typer.echo(_say_wanted(found.wanted) if found.wanted else _say_champion(found))


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
    typer.echo(_say_champion(found))


def _say_champion(found: "ChampionView") -> str:
    return escape(f"version {found.champion} is champion: models:/{found.name}@champion")


def _say_wanted(wanted: "WishView") -> str:
    return escape(
        f"the model of task {wanted.task_id} becomes champion once a worker has registered it "
        f"(wanted by {wanted.by})"
    )
