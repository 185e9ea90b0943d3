"""Commands for labels: which sets there are, and a set from and to a file."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import calls_api, open_client
from embedding_studio.cli.render import minute, print_table, printed_json, say
from embedding_studio.errors import InvalidInput

if TYPE_CHECKING:
    from embedding_studio.labels import Label

app = typer.Typer(help="List, show, put, export and delete labels.", no_args_is_help=True)
LabelsId = Annotated[str, typer.Argument(metavar="LABELS", help="the set's name")]


@app.command("list")
@calls_api
def list_labels() -> None:
    """Show the sets of labels."""
    with open_client() as client:
        found = [*client.list_labels()]
    if printed_json(found):
        return
    times = [minute(datetime.fromtimestamp(one.created_at, UTC)) for one in found]
    rows = [
        [one.labels_id, "golden" if one.golden else "", time]
        for one, time in zip(found, times, strict=True)
    ]
    print_table(["labels", "", "began"], rows)


@app.command("show")
@calls_api
def show_labels(labels: LabelsId) -> None:
    """Show what a set has."""
    with open_client() as client:
        found = client.get_labels(labels)
    if printed_json(found):
        return
    counts = ("labels", "queries", "items", "highest_grade")
    rows = [[name.replace("_", " "), f"{getattr(found, name):,}"] for name in counts]
    print_table([found.labels_id, "golden" if found.golden else ""], rows)


@app.command("put")
@calls_api
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
) -> None:
    """Add a file's labels to a set: a JSON object with query, object_id and grade on each line."""
    found = _read(file)
    with open_client() as client:
        put = client.put_labels(labels, found, golden=golden)
    if printed_json(put):
        return
    typer.echo(f"{put.created} new, {put.updated} with another grade, {put.unchanged} as before")


@app.command("export")
@calls_api
def export_labels(
    labels: LabelsId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="is replaced if it exists")],
) -> None:
    """Write a set to a file that can be put again."""
    with open_client() as client:
        client.export_labels(labels, file)
    say(f"labels {labels} are in {file}")


@app.command("delete")
@calls_api
def delete_labels(labels: LabelsId) -> None:
    """Delete a set."""
    with open_client() as client:
        client.delete_labels(labels)
    say(f"labels {labels} are deleted")


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
