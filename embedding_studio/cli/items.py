"""Commands for items: which there are, and what one says. They are put by `import`."""

import json
from itertools import islice
from typing import Annotated

import typer

from embedding_studio.cli.context import client_of
from embedding_studio.cli.render import print_table
from embedding_studio.plain import escape

_SHOWN_CHARS = 60
app = typer.Typer(
    help="List, show and delete items; `import --format items` puts them.", no_args_is_help=True
)
Url = Annotated[str | None, typer.Option("--url", help="the API's address, if not this machine's")]


@app.command("list")
def list_items(limit: Annotated[int, typer.Option(min=1)] = 100, url: Url = None) -> None:
    """Show items in the order of their ids."""
    with client_of(url) as client:
        found = [*islice(client.read_items(min(limit, 100)), limit)]
    rows = []
    for item in found:
        text = " ".join(item.content().get("text", "").split())
        shown = text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
        rows.append([item.object_id, shown, item.image or ""])
    print_table(["item", "text", "image"], rows)


@app.command("get")
def get_item(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="its object id")], url: Url = None
) -> None:
    """Show an item as JSON that can be put again."""
    from embedding_studio.wire.items import ItemBody

    with client_of(url) as client:
        found = ItemBody.of(client.get_item(item)).model_dump(mode="json", exclude_none=True)
    typer.echo(json.dumps(found, indent=2))


@app.command("delete")
def delete_items(
    items: Annotated[list[str], typer.Argument(metavar="ITEM...", help="their object ids")],
    url: Url = None,
) -> None:
    """Delete items; what batches hold of sessions stays."""
    with client_of(url) as client:
        deleted = client.delete_items(items)
    typer.echo(escape(f"{deleted} of {len(items)} items were there, and are deleted"))
