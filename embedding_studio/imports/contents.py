"""Tables of items: rows are things that can be found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedding_studio.imports.columns import named
from embedding_studio.items import Item
from embedding_studio.labels import Label
from embedding_studio.wire.imports import as_text
from embedding_studio.wire.items import ItemBody

_READ = ("title", "name", "headline", "subtitle", "summary", "description", "brand", "category")
ITEM_ALIASES: Mapping[str, Sequence[str]] = {
    "item": ("object id", "item id", "item", "product id", "sku", "doc id", "document id",
             "corpus id", "id"),
    "text": ("text", "item text", "content", "contents", "body", "document", "passage"),
    "fields": ("fields",),
    **{name: (name, f"item {name}", f"product {name}") for name in _READ},
    "image": ("image", "image url", "picture", "photo", "img"),
    "url": ("url", "link", "href"),
    "meta": ("meta", "metadata"),
}  # fmt: skip
"""The fields of a table of items, and the columns that are taken for them."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a row tells of items, and of their relevance for queries."""

    row: int
    items: tuple[Item, ...]
    labels: tuple[Label, ...] = ()


def item_values(values: Mapping[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """Return the item that a row is, as it is posted. What it has besides becomes its meta."""
    posted = named(values, columns)
    if "item" in posted:
        columns["object_id"] = columns["item"]
        posted["object_id"] = as_text(posted.pop("item"))
    read = {name: as_text(posted.pop(name)) for name in (*_READ, "text") if name in posted}
    fields = posted.get("fields", {})
    if read.keys() == {"text"} and not fields:
        posted["text"] = read["text"]
    elif read and isinstance(fields, dict):
        posted["fields"] = {**fields, **read}
    meta = posted.get("meta", {})
    others = set(values).difference(columns.values())
    rest = {name: one for name, one in values.items() if name in others and one is not None}
    if rest and isinstance(meta, dict):
        posted["meta"] = {**rest, **meta}
    return posted


def told_item(row: int, body: ItemBody) -> Told:
    """Return the item."""
    return Told(row, (body.to_item(),))
