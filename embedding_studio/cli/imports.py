"""The command that sends a file to the API."""

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import client_of
from embedding_studio.plain import escape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from embedding_studio.wire.imports import RowNote

app = typer.Typer()
_SHOWN = 5


@app.command("import")
def import_file(
    file: Annotated[str, typer.Argument(metavar="FILE", help="or a URL, which the API then reads")],
    wanted: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="sessions, impressions, items, pairs, chat, qrels or labels; without it, "
            "recognised",
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="of a table: query=search_term,item=sku,clicked=is_click,...")
    ] = "",
    labels_id: Annotated[
        str | None, typer.Option(help="the set that pairs, chat, qrels and labels join")
    ] = None,
    files: Annotated[
        str | None, typer.Option(help="of labels: the folder or bucket that the files are in")
    ] = None,
    import_id: Annotated[
        str | None, typer.Option(help="without it, made of the file's content")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="judge all rows, keep nothing")] = False,
    refused: Annotated[
        Path | None, typer.Option(help="a file for the refused rows, with reasons: JSON lines")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="the API's address, if not this machine's")
    ] = None,
) -> None:
    """Bring sessions or tables of impressions, of any age, items, or labels: JSON lines, JSON,
    YAML, CSV or parquet, also in gzip or zstd."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from embedding_studio.wire.imports import columns_in

    path, is_elsewhere = Path(file), "://" in file
    if not is_elsewhere and not path.is_file():
        raise typer.BadParameter(f"there is no file {file!r}", param_hint="FILE")
    if is_elsewhere and refused is not None:
        raise typer.BadParameter("of a file elsewhere, the rows are not here", param_hint="refused")
    bars = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with ExitStack() as opened:
        client = opened.enter_context(client_of(url))
        if is_elsewhere:
            send = partial(client.import_url, file)
        else:
            progress = opened.enter_context(Progress(*bars, console=Console(stderr=True)))
            bar = progress.add_task("sent", total=path.stat().st_size)
            send = partial(
                client.import_file,
                path,
                on_sent=lambda sent: progress.update(bar, completed=sent),
            )
        report = send(
            format=wanted,
            columns=columns_in(columns),
            import_id=import_id,
            dry_run=dry_run,
            labels_id=labels_id,
            files=files,
        )
    kept = (
        "nothing is kept"
        if dry_run
        else f"{report.created} new, {report.existing} known, {report.new_events} new events"
    )
    made = {"labels": report.labels, "items": report.items, "sessions": report.sessions}
    told = ", ".join(f"{count} {what}" for what, count in made.items() if count) or "nothing"
    typer.echo(f"{report.rows} rows ({report.format}) make {told}: {kept}")
    for what, count, notes in (
        ("rows are refused", report.refused, report.refusals),
        ("may teach nothing", report.warned, report.warnings),
    ):
        if count:
            typer.echo(f"{count} {what}:")
        for note in notes[:_SHOWN]:
            place = f"row {note.row}" + (f", {note.column}" if note.column else "")
            typer.echo(escape(f"  {place}: {note.reason}"))
        if count > _SHOWN:
            typer.echo(f"  and {count - len(notes[:_SHOWN])} more")
    if refused is not None:
        _write_refused(path, refused, report.refusals)
    if report.refused and not any(made.values()):
        raise typer.Exit(1)


def _write_refused(file: Path, target: Path, notes: "Iterable[RowNote]") -> None:
    """Write rows of a file as JSON lines, each with what is said of it."""
    from embedding_studio.imports.readers import read_rows
    from embedding_studio.settings import Settings

    left = {note.row: note for note in notes}
    with file.open("rb") as opened, target.open("w", encoding="utf-8") as written:
        for row in read_rows(opened.read, Settings()) if left else ():
            if (note := left.pop(row.number, None)) is not None:
                text = (
                    row.content.decode(errors="replace")
                    if isinstance(row.content, bytes)
                    else row.content
                )
                written.write(json.dumps({**note.model_dump(), "content": text}) + "\n")
            if not left:
                break
