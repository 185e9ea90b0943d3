"""Commands for batches: which there are, what is in one, and its sessions as a file."""

from collections.abc import Collection
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import calls_api, open_client
from embedding_studio.cli.render import minute, print_table, printed_json, say
from embedding_studio.clickstream import BatchCount
from embedding_studio.deletion import remove_tree
from embedding_studio.errors import InvalidInput

if TYPE_CHECKING:
    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.items import Item

_BAR = 40
_PAGE = 1000
app = typer.Typer(
    help="List batches, see what one has and what it is worth, release, export and import.",
    no_args_is_help=True,
)


@app.command("list")
@calls_api
def list_batches(
    skip: Annotated[int, typer.Option(min=0)] = 0,
    limit: Annotated[int, typer.Option(min=1)] = 100,
) -> None:
    """Show batches, newest first."""
    with open_client() as client:
        found = client.list_batches(skip, limit)
    if printed_json(found):
        return
    rows = []
    for batch in found:
        times = [minute(_utc(batch.created_at)), minute(_utc(batch.released_at))]
        late = batch.counts.get(BatchCount.LATE_SESSIONS, 0)
        rows.append([batch.batch_id, batch.status, *times, str(batch.session_count), str(late)])
    print_table(["batch", "state", "began", "released", "sessions", "came late"], rows)


@app.command("show")
@calls_api
def show_batch(
    batch: Annotated[
        str | None, typer.Argument(metavar="BATCH", help="by default, the one now collecting")
    ] = None,
) -> None:
    """Show a batch: how large it is, and what was noticed as it came, late sessions among it."""
    with open_client() as client:
        found = client.get_batch(batch)
    if printed_json(found):
        return
    rows = [
        ["state", found.status],
        ["began", minute(_utc(found.created_at))],
        ["released", minute(_utc(found.released_at))],
        ["sessions", f"{found.session_count:,}"],
        ["clicked sessions", f"{found.clicked_sessions:,}"],
        *([name.replace("_", " "), f"{count:,}"] for name, count in found.counts.items()),
    ]
    print_table(["batch", found.batch_id], rows)


@app.command("release")
@calls_api
def release_batch(
    release_id: Annotated[
        str | None, typer.Option(help="the same id gives the same batch; by default, a new one")
    ] = None,
) -> None:
    """Close the batch now collecting: tasks can name it, and the next session begins another."""
    with open_client() as client:
        released = client.release_batch(release_id)
    if not printed_json(released):
        say(f"batch {released.batch_id} is released")


@app.command("report")
@calls_api
def report_on_batch(
    batch: Annotated[
        str | None, typer.Argument(metavar="BATCH", help="by default, the one now collecting")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="write a page with plots there instead"),
    ] = None,
) -> None:
    """Show what a batch is worth before it is paid for, and what is wrong with it."""
    with open_client() as client:
        batch_id = batch or client.get_batch().batch_id
        found = client.report_on_batch(batch_id)
    if html is not None:
        from embedding_studio.report_page import page_of
        from embedding_studio.reports import BatchReport

        page = page_of(BatchReport(**dict(found)), f"Batch {batch_id}")
        html.write_text(page, encoding="utf-8")
        say(f"the report on batch {batch_id} is in {html}")
        return
    if printed_json(found):
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
        say(f"! {warning}")


@app.command("export")
@calls_api
def export_batch(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="the batch's id")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="is replaced if it exists")],
    parquet: Annotated[
        bool,
        typer.Option("--parquet", help="a new folder FILE, with a table of sessions and items"),
    ] = False,
) -> None:
    """Write a batch's sessions to a file, one a line, as JSON that can be posted again."""
    with open_client() as client:
        if parquet:
            _write_tables(client, batch, file)
        else:
            client.export_batch(batch, file)
    say(f"batch {batch} is in {file}")


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
