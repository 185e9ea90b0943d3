"""Which columns of a table, or fields of an object, an item is made of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_jsonable_python

from embedding_studio.clickstream import event_kind
from embedding_studio.errors import InvalidInput, Unreadable
from embedding_studio.items import Item
from embedding_studio.loaders.sources import Source

ALIASES: Mapping[str, Sequence[str]] = {
    "id": ("object id", "item id", "id", "product id", "doc id", "document id", "sku", "item"),
    "text": ("text", "item text", "title", "item name", "name", "description"),
    "image": ("image", "image url", "image link", "picture", "file"),
    "url": ("url", "link", "page"),
}
"""What is taken for an item's own fields where the source does not say, the first that is there,
whatever the case, spaces, hyphens and underscores in its name."""


class Columns:
    """The columns of a source, among those that there are."""

    def __init__(self, source: Source, names: Iterable[str]) -> None:
        by_kind = {event_kind(name): name for name in names}
        self._source = source
        self.own = {
            field: by_kind[kind]
            for field, aliases in ALIASES.items()
            for kind in [*map(event_kind, aliases)][::-1]
            if kind in by_kind
        } | dict(source.columns)
        self.names = list(dict.fromkeys([*self.own.values(), *source.fields, *source.meta]))

    @property
    def id(self) -> str:
        """The column of the ids. Raises InvalidInput where there is none."""
        if "id" not in self.own:
            raise InvalidInput("no column is recognised as the items' ids: name it in columns: id")
        return self.own["id"]

    def id_in(self, values: Mapping[str, Any]) -> str:
        """Return a row's id. Raises InvalidInput."""
        if values.get(self.id) is None:
            raise InvalidInput(f"the column {self.id!r} is empty, or not there")
        return _text(values[self.id]) or ""

    def item(self, object_id: str, values: Mapping[str, Any]) -> Item:
        """Return what a row tells. Raises Unreadable where that is neither a text nor an image."""
        own = {field: _text(values.get(name)) for field, name in self.own.items()}
        item = Item(
            object_id,
            text=own.get("text"),
            fields={
                name: text for name in self._source.fields if (text := _text(values.get(name)))
            },
            image=own.get("image"),
            url=own.get("url"),
            meta={
                name: to_jsonable_python(values[name], fallback=str)
                for name in self._source.meta
                if values.get(name) is not None
            },
        )
        if not {"text", "image"} & item.content().keys():
            raise Unreadable("it has neither text nor image")
        return item


def item_in(source: Source, object_id: str, content: bytes) -> Item:
    """Return the item that a file tells: a JSON object, whose fields are as columns, or a text.
    Raises Unreadable."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("it is no text in UTF-8") from None
    try:
        values = from_json(text)
    except ValueError:
        values = None
    if isinstance(values, dict):
        return Columns(source, values).item(object_id, values)
    if not text.strip():
        raise Unreadable("it is empty")
    return Item(object_id, text=text)


def _text(value: object) -> str | None:
    """Return what a cell says; in tables, ids and texts are numbers here and there."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else str(value).strip() or None
