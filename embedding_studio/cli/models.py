"""Commands for registered models: their versions, what a person decides of them, and their files.

A version is written NAME/3 or NAME@champion; NAME alone is its champion where one version is meant.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import calls_api, open_client
from embedding_studio.cli.render import minute, print_table, printed_json, say
from embedding_studio.models import CHAMPION, split_reference

if TYPE_CHECKING:
    from embedding_studio.wire.models import ModelView, VersionView

app = typer.Typer(
    help="List and show models, promote a version, go back to one, delete and download one.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="the model's name")]
Version = Annotated[str, typer.Argument(metavar="NAME/VERSION", help="NAME/3 or NAME@champion")]
Reason = Annotated[str, typer.Option(help="for the model's history")]


@app.command("list")
@calls_api
def list_models() -> None:
    """Show the models, and which version of each is champion."""
    with open_client() as client:
        found = client.list_models()
    if printed_json(found):
        return
    rows = [
        [
            model.name,
            str(model.champion or ""),
            str(model.version_count),
            minute(model.changed_at),
            model.fine_tuning_method,
        ]
        for model in found
    ]
    print_table(["model", "champion", "versions", "changed", "method"], rows)


@app.command("show")
@calls_api
def show(
    model: Annotated[
        str, typer.Argument(metavar="NAME[/VERSION]", help="NAME, NAME/3 or NAME@champion")
    ],
) -> None:
    """Show a model's versions, newest first, and who moved its champion; or one version."""
    name, version = split_reference(model)
    with open_client() as client:
        if version is not None:
            one = client.get_version(name, version)
            if not printed_json(one):
                _print_version(name, one)
            return
        found = client.get_model(name)
    if not printed_json(found):
        _print_model(found)


def _print_model(found: "ModelView") -> None:
    rows = []
    for version in found.versions:
        verdict = version.promotion
        figures = f"{verdict.baseline:.4f} -> {verdict.best:.4f}" if verdict else ""
        reason = verdict.reason if verdict else ""
        made, task = minute(version.created_at), version.task_id or ""
        rows.append([str(version.version), version.state, made, task, figures, reason])
    print_table(["version", "state", "created", "task", "test", "verdict"], rows)
    rows = []
    for move in found.moves:
        from_to = [str(move.from_version or ""), str(move.to_version)]
        rows.append([minute(move.at), *from_to, move.kind, move.by, move.why])
    typer.echo()
    print_table(["moved", "from", "to", "kind", "by", "why"], rows)
    if found.wanted is not None:
        typer.echo()
        _say_who_is_champion(found)


def _print_version(name: str, found: "VersionView") -> None:
    told = found.model_dump(mode="json", exclude_none=True)
    for left_out in ("promotion", "version", "is_champion", "can_be_champion", "warnings"):
        told.pop(left_out, None)
    rows = [["model", f"{name}/{found.version}"]]
    rows += [
        [word, ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else
         ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
        for word, value in told.items()
    ]  # fmt: skip
    print_table(["", ""], rows)
    if (verdict := found.promotion) is not None:
        typer.echo()
        say(verdict.reason)
        changes = [
            [
                one.name,
                f"{one.before:.4f}",
                f"{one.after:.4f}",
                f"{one.delta:+.4f}",
                f"{one.delta_ci95[0]:+.4f} to {one.delta_ci95[1]:+.4f}" if one.delta_ci95 else "",
            ]
            for one in verdict.metrics
        ]
        print_table(["metric", "before", "after", "difference", "95 % interval"], changes)
    for warning in found.warnings:
        say(f"beware: {warning}")


@app.command("promote")
@calls_api
def promote(
    model: Annotated[str, typer.Argument(metavar="NAME[/VERSION]")],
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="whose model, in place of a version")
    ] = None,
    reason: Reason = "",
) -> None:
    """Make a version, or a task's model, champion, whatever its verdict was."""
    name, version = split_reference(model)
    if (version is None) == (task is None):
        raise typer.BadParameter("name a version, NAME/3, or the task: NAME --task ID")
    with open_client() as client:
        number = None
        if version is not None:
            number = (
                int(version) if version.isdigit() else client.get_version(name, version).version
            )
        found = client.promote(name, number, task_id=task, reason=reason)
    if not printed_json(found):
        _say_who_is_champion(found)


@app.command("rollback")
@calls_api
def roll_back(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME[/VERSION]", help="NAME: to what was champion before"),
    ],
    reason: Reason = "",
) -> None:
    """Make an earlier champion champion; MLflow's alias follows within seconds."""
    name, version = split_reference(model)
    if version is not None and not version.isdigit():
        raise typer.BadParameter("name the version by its number: NAME/3")
    with open_client() as client:
        found = client.roll_back(name, None if version is None else int(version), reason)
    if not printed_json(found):
        _say_who_is_champion(found)


@app.command("delete")
@calls_api
def delete(model: Version) -> None:
    """Delete a version's files; it stays on record as removed. The champion cannot be."""
    name, version = split_reference(model)
    if version is None or not version.isdigit():
        raise typer.BadParameter("name the version by its number: NAME/3")
    with open_client() as client:
        client.delete_version(name, int(version))
        found = client.get_version(name, int(version))
    if not printed_json(found):
        say(f"version {version} of {name!r} is removed; a worker deletes its files")


@app.command("download")
@calls_api
def download(
    model: Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="NAME: its champion")],
    folder: Annotated[Path, typer.Argument(help="new, or empty")],
) -> None:
    """Write a version's files to a folder, from where sentence-transformers loads it."""
    name, version = split_reference(model)
    with open_client() as client:
        client.download_version(name, folder, version or CHAMPION)
    if not printed_json({"folder": str(folder)}):
        say(f"{model} is in {folder}")


def _say_who_is_champion(found: "ModelView") -> None:
    if (wanted := found.wanted) is not None:
        say(
            f"the model of task {wanted.task_id} becomes champion once a worker has registered it "
            f"(wanted by {wanted.by})"
        )
    else:
        say(f"version {found.champion} is champion: models:/{found.registered_name}@champion")
