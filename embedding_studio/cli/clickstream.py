"""Commands for batches: which there are, what is in one, and its sessions as a file."""

from collections.abc import Collection
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import client_of
from embedding_studio.cli.render import minute, print_table
from embedding_studio.clickstream import BatchCount
from embedding_studio.deletion import remove_tree
from embedding_studio.errors import InvalidInput
from embedding_studio.plain import escape

if TYPE_CHECKING:
    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.items import Item

_BAR = 40
_PAGE = 1000
app = typer.Typer(
    help="List batches, see what is in one and what it is worth, export it.", no_args_is_help=True
)
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


@app.command("show")
def show_batch(
    batch: Annotated[
        str | None, typer.Argument(metavar="BATCH", help="by default, the one now collecting")
    ] = None,
    url: Url = None,
) -> None:
    """Show a batch: how large it is, and what was noticed as it came, late sessions among it."""
    with client_of(url) as client:
        found = client.get_batch(batch)
    rows = [
        ["state", found.status],
        ["began", minute(_utc(found.created_at))],
        ["released", minute(_utc(found.released_at))],
        ["sessions", f"{found.session_count:,}"],
        ["clicked sessions", f"{found.clicked_sessions:,}"],
        *([name.replace("_", " "), f"{count:,}"] for name, count in found.counts.items()),
    ]
    print_table(["batch", found.batch_id], rows)


@app.command("report")
def report_on_batch(
    batch: Annotated[
        str | None, typer.Argument(metavar="BATCH", help="by default, the one now collecting")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="write a page with plots there instead"),
    ] = None,
    url: Url = None,
) -> None:
    """Show what a batch is worth before it is paid for, and what is wrong with it."""
    with client_of(url) as client:
        batch_id = batch or client.get_batch().batch_id
        found = client.report_on_batch(batch_id)
    if html is not None:
        from embedding_studio.report_page import page_of
        from embedding_studio.reports import BatchReport

        page = page_of(BatchReport(**dict(found)), f"Batch {batch_id}")
        html.write_text(page, encoding="utf-8")
        typer.echo(escape(f"the report on batch {batch_id} is in {html}"))
        return
    names = [name for name, value in found if isinstance(value, int)]
    rows = [[name.replace("_", " "), f"{getattr(found, name):,}"] for name in names]
    rows += [
        [f"{name.replace('_', ' ')}, the top 1 %", f"{getattr(found, name):.1%}"]
        for name in ("share_of_queries", "share_of_items", "share_of_users")
    ]
    rows += [[f"queries in {name}", f"{share:.1%}"] for name, share in found.scripts.items()]
    if found.recognised_gain is not None:
        low, high = found.recognised_gain
        rows.append(["gain in nDCG@10 that would be recognised", f"{low:.3f} to {high:.3f}"])
    print_table(["batch", batch_id], rows)
    typer.echo()
    print_table(["event", "times"], [[kind, f"{n:,}"] for kind, n in found.events.items()])
    typer.echo()
    rates = [one.clicked / one.shown for one in found.positions]
    most = max(rates, default=0) or 1
    bars = ["█" * round(_BAR * rate / most) for rate in rates]
    print_table(
        ["position", "clicked", ""],
        [
            [str(n), f"{rate:.1%}", bar]
            for n, (rate, bar) in enumerate(zip(rates, bars, strict=True), 1)
        ],
    )
    for warning in found.warnings:
        typer.echo(escape(f"! {warning}"))


@app.command("export")
def export_batch(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="the batch's id")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="is replaced if it exists")],
    parquet: Annotated[
        bool,
        typer.Option("--parquet", help="a new folder FILE, with a table of sessions and items"),
    ] = False,
    url: Url = None,
) -> None:
    """Write a batch's sessions to a file, one a line, as JSON that can be posted again."""
    with client_of(url) as client:
        if parquet:
            _write_tables(client, batch, file)
        else:
            client.export_batch(batch, file)
    typer.echo(escape(f"batch {batch} is in {file}"))


def _write_tables(client: "EmbeddingStudioClient", batch: str, folder: Path) -> None:
    from embedding_studio.snapshot import SnapshotWriter
    from embedding_studio.store.sessions import SESSION

    if folder.exists():
        raise InvalidInput(f"{folder} exists: name a folder that is to be made")
    sessions = client.read_batch(batch, _PAGE)
    items = {item.object_id: item for item in client.read_items(_PAGE)}
    part = folder.with_name(f".{folder.name}.part")

    def find(ids: Collection[str]) -> dict[str, "Item"]:
        return {name: items[name] for name in items.keys() & ids}

    try:
        with SnapshotWriter(part, find) as writer:
            while page := [SESSION.encode(one.session) for one in islice(sessions, _PAGE)]:
                writer.add(page)
        part.rename(folder)
    finally:
        remove_tree(part, ignore_errors=True)


def _utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
