"""Commands for labels: which sets there are, and a set from and to a file."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import client_of
from embedding_studio.cli.render import minute, print_table
from embedding_studio.errors import InvalidInput
from embedding_studio.plain import escape

if TYPE_CHECKING:
    from embedding_studio.labels import Label

app = typer.Typer(help="List, show, put, export and delete labels.", no_args_is_help=True)
Url = Annotated[str | None, typer.Option("--url", help="the API's address, if not this machine's")]
LabelsId = Annotated[str, typer.Argument(metavar="LABELS", help="the set's name")]


@app.command("list")
def list_labels(url: Url = None) -> None:
    """Show the sets of labels."""
    with client_of(url) as client:
        found = [*client.list_labels()]
    times = [minute(datetime.fromtimestamp(one.created_at, UTC)) for one in found]
    rows = [
        [one.labels_id, "golden" if one.golden else "", time]
        for one, time in zip(found, times, strict=True)
    ]
    print_table(["labels", "", "began"], rows)


@app.command("show")
def show_labels(labels: LabelsId, url: Url = None) -> None:
    """Show what a set has."""
    with client_of(url) as client:
        found = client.get_labels(labels)
    counts = ("labels", "queries", "items", "highest_grade")
    rows = [[name.replace("_", " "), f"{getattr(found, name):,}"] for name in counts]
    print_table([found.labels_id, "golden" if found.golden else ""], rows)


@app.command("put")
def put_labels(
    labels: LabelsId,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE")],
    golden: Annotated[
        bool | None,
        typer.Option(
            "--golden/--not-golden",
            help="whether no model is promoted that got worse on them; by default, as it is",
        ),
    ] = None,
    url: Url = None,
) -> None:
    """Add a file's labels to a set: a JSON object with query, object_id and grade on each line."""
    found = _read(file)
    with client_of(url) as client:
        put = client.put_labels(labels, found, golden=golden)
    typer.echo(f"{put.created} new, {put.updated} with another grade, {put.unchanged} as before")


@app.command("export")
def export_labels(
    labels: LabelsId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="is replaced if it exists")],
    url: Url = None,
) -> None:
    """Write a set to a file that can be put again."""
    with client_of(url) as client:
        client.export_labels(labels, file)
    typer.echo(escape(f"labels {labels} are in {file}"))


@app.command("delete")
def delete_labels(labels: LabelsId, url: Url = None) -> None:
    """Delete a set."""
    with client_of(url) as client:
        client.delete_labels(labels)
    typer.echo(escape(f"labels {labels} are deleted"))


def _read(file: Path) -> "list[Label]":
    """Return the labels of a file. Raises InvalidInput that tells the line."""
    from pydantic import ValidationError

    from embedding_studio.wire.errors import summarize_field_errors
    from embedding_studio.wire.labels import LabelBody

    labels = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    labels.append(LabelBody.model_validate_json(line).to_label())
                except ValidationError as error:
                    told = summarize_field_errors(error.errors())
                    raise InvalidInput(f"line {number} of {file} is no label: {told}") from None
    return labels
