"""Commands for items: which there are, and what one says. They are put by `import`."""

import json
from itertools import islice
from typing import Annotated

import typer

from embedding_studio.cli.context import calls_api, open_client
from embedding_studio.cli.render import print_table, printed_json, say

_SHOWN_CHARS = 60
app = typer.Typer(
    help="List, show and delete items; `import --format items` puts them.", no_args_is_help=True
)


@app.command("list")
@calls_api
def list_items(limit: Annotated[int, typer.Option(min=1)] = 100) -> None:
    """Show items in the order of their ids."""
    from embedding_studio.wire.items import ItemBody

    with open_client() as client:
        found = [*islice(client.read_items(min(limit, 100)), limit)]
    if printed_json([ItemBody.of(item).model_dump(exclude_none=True) for item in found]):
        return
    rows = []
    for item in found:
        text = " ".join(item.content().get("text", "").split())
        shown = text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
        rows.append([item.object_id, shown, item.image or ""])
    print_table(["item", "text", "image"], rows)


@app.command("get")
@calls_api
def get_item(item: Annotated[str, typer.Argument(metavar="ITEM", help="its object id")]) -> None:
    """Show an item as JSON that can be put again."""
    from embedding_studio.wire.items import ItemBody

    with open_client() as client:
        found = ItemBody.of(client.get_item(item)).model_dump(mode="json", exclude_none=True)
    typer.echo(json.dumps(found, indent=2))


@app.command("delete")
@calls_api
def delete_items(
    items: Annotated[list[str], typer.Argument(metavar="ITEM...", help="their object ids")],
) -> None:
    """Delete items; what batches hold of sessions stays."""
    with open_client() as client:
        deleted = client.delete_items(items)
    say(f"{deleted} of {len(items)} items were there, and are deleted")
