"""Commands for batches: which there are, and their sessions as a file."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from embedding_studio.cli.context import client_of
from embedding_studio.cli.render import minute, print_table
from embedding_studio.clickstream import BatchCount
from embedding_studio.plain import escape

app = typer.Typer(help="List batches, and export one.", no_args_is_help=True)
Url = Annotated[str | None, typer.Option("--url", help="the API's address, if not this machine's")]


@app.command("list")
def list_batches(
    skip: Annotated[int, typer.Option(min=0)] = 0,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    url: Url = None,
) -> None:
    """Show batches, newest first."""
    with client_of(url) as client:
        found = client.list_batches(skip, limit)
    rows = []
    for batch in found:
        times = [minute(_utc(batch.created_at)), minute(_utc(batch.released_at))]
        late = batch.counts.get(BatchCount.LATE_SESSIONS, 0)
        rows.append([batch.batch_id, batch.status, *times, str(batch.session_count), str(late)])
    print_table(["batch", "state", "began", "released", "sessions", "came late"], rows)


@app.command("export")
def export_batch(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="the batch's id")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="is replaced if it exists")],
    url: Url = None,
) -> None:
    """Write a batch's sessions to a file, one a line, as JSON that can be posted again."""
    with client_of(url) as client:
        client.export_batch(batch, file)
    typer.echo(escape(f"batch {batch} is in {file}"))


def _utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
