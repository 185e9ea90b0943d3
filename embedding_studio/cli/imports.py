"""The command that sends a file to the API."""

import json
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import calls_api, open_client
from embedding_studio.cli.render import printed_json
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.plain import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from rich.status import Status

    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.imports.readers import Row
    from embedding_studio.wire.imports import ImportReport, RowNote

app = typer.Typer()
_SHOWN = 5
_RETRY_SECONDS = 60.0
_LOOK_SECONDS = 1.0


@app.command("import")
@calls_api
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
        str | None,
        typer.Option(
            help="of labels: the folder or bucket that the files are in, or a ZIP or tar, which is "
            "unpacked beside itself; without it FILE may be one, that has the labels too"
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="of qrels: the queries' ids and texts"),
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(help="a statement, whose rows are imported; FILE is the database's URL then"),
    ] = None,
    import_id: Annotated[
        str | None, typer.Option(help="without it, made of the file's content")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="judge all rows, keep nothing")] = False,
    refused: Annotated[
        Path | None, typer.Option(help="a file for the refused rows, with reasons: JSON lines")
    ] = None,
) -> None:
    """Bring sessions or tables of impressions, of any age, items, or labels: JSON lines, JSON,
    YAML, CSV or parquet, also in gzip or zstd."""
    from embedding_studio.client.imports import import_id_of_text
    from embedding_studio.imports.beside import labelled_files
    from embedding_studio.wire.imports import columns_in

    path, is_elsewhere = Path(file), sql is None and "://" in file
    if sql is None and not is_elsewhere and not path.is_file():
        raise typer.BadParameter(f"there is no file {file!r}", param_hint="FILE")
    if refused is not None and (is_elsewhere or sql is not None):
        raise typer.BadParameter(
            "of what is elsewhere, the rows are not here", param_hint="refused"
        )
    if queries is not None and (is_elsewhere or sql is not None):
        raise typer.BadParameter("they are for a file that is here", param_hint="queries")
    folder = None
    with ExitStack() as opened:
        client = opened.enter_context(open_client(_RETRY_SECONDS))
        if sql is None and not is_elsewhere:
            beside = labelled_files(path, files, is_kept=not dry_run)
            path, folder, files = opened.enter_context(beside)
            wanted = "labels" if folder is not None else wanted
        if is_elsewhere:
            import_id = import_id or import_id_of_text(file)
            opened.enter_context(_followed(client, import_id))
            send: Callable[..., ImportReport] = partial(client.import_url, file)
        elif (rows := _rows_of(path, file, sql, queries, folder)) is not None:
            import_id = import_id or _id_of(path, file, sql)
            on_sent = opened.enter_context(_progress())
            send = partial(client.import_rows, rows, on_sent=on_sent)
        else:
            on_sent = opened.enter_context(_progress(path.stat().st_size))
            send = partial(client.import_file, path, on_sent=lambda sent: on_sent(None, sent))
        report = send(
            format=wanted,
            columns=columns_in(columns),
            import_id=import_id,
            dry_run=dry_run,
            labels_id=labels_id,
            files=files,
        )
        if refused is not None:
            _write_refused(path, refused, report.refusals)
    if not printed_json(report):
        _print_report(report, dry_run)
    if report.refused and not (report.labels or report.items or report.sessions):
        raise typer.Exit(1)


def _print_report(report: "ImportReport", dry_run: bool) -> None:
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


def _rows_of(
    path: Path, url: str, sql: str | None, queries: Path | None, folder: Path | None
) -> "Callable[[], Iterator[Row] | Iterator[dict[str, Any]]] | None":
    """Return what makes the rows to be sent, None where the file is sent as it is."""
    from embedding_studio.imports import beside

    if sql is not None:
        from embedding_studio.imports.sql import sql_rows

        return partial(sql_rows, url, sql)
    if queries is not None:
        texts = beside.queries_in(queries)
        return lambda: beside.with_queries(beside.rows_in(path), texts)
    if folder is not None:
        return lambda: beside.with_texts(beside.rows_in(path), folder)
    return None


def _id_of(path: Path, url: str, sql: str | None) -> str:
    """Return the import's id: of what the file has, or of the statement and where it is asked."""
    from embedding_studio.client.imports import import_id_of, import_id_of_text

    if sql is None:
        return import_id_of(path)
    from embedding_studio.imports.sql import shown_url

    return import_id_of_text(f"{shown_url(url)} {sql}")


@contextmanager
def _progress(total: int | None = None) -> "Iterator[Callable[[int | None, int], None]]":
    """Show how much is sent, in a terminal; yield what is told how many rows, and bytes."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        FileSizeColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        (TextColumn("{task.description}"), FileSizeColumn())
        if total is None
        else (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("0 rows", total=total)

        def on_sent(rows: int | None, sent: int) -> None:
            progress.update(bar, completed=sent, description=f"{rows} rows")

        yield on_sent


@contextmanager
def _followed(client: "EmbeddingStudioClient", import_id: str) -> "Iterator[None]":
    """Show, in a terminal, how far the API is with an import that it reads by itself."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    is_over = Event()

    def follow(status: "Status") -> None:
        while not is_over.wait(_LOOK_SECONDS):
            with suppress(EmbeddingStudioError):  # it has not begun, or the import says what is up
                so_far = client.get_import(import_id)
                status.update(f"{so_far.rows} rows, {so_far.refused} refused")

    with console.status("0 rows") as status:
        looking = Thread(target=follow, args=(status,), daemon=True)
        looking.start()
        try:
            yield
        finally:
            is_over.set()
            looking.join()


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
