"""What a row of a table, or an object in a file, tells of an item: the same as when imported."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import from_json, to_jsonable_python

from embedding_studio.errors import InvalidInput, Unreadable
from embedding_studio.imports import columns
from embedding_studio.imports.contents import ITEM_ALIASES, item_values
from embedding_studio.items import Item
from embedding_studio.loaders.sources import Source
from embedding_studio.wire.imports import as_text


class Columns:
    """The columns of a source, among those that there are. What nobody names is left where it is.

    Raises InvalidInput where two could be the same."""

    def __init__(self, source: Source, names: Iterable[str]) -> None:
        known = columns.Columns(ITEM_ALIASES, source.columns)
        try:
            self._own = known.named_by(dict.fromkeys(names))
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        self._source = source
        #: all that are read
        self.names = [*dict.fromkeys([*self._own.values(), *source.fields, *source.meta])]

    @property
    def id(self) -> str:
        """The column of the ids. Raises InvalidInput where there is none."""
        if "item" not in self._own:
            raise InvalidInput("no column is recognised as the items' ids: name it, columns: item")
        return self._own["item"]

    def id_in(self, values: Mapping[str, Any]) -> str:
        """Return a row's id. Raises InvalidInput."""
        if (its_id := _text(values.get(self.id))) is None:
            raise InvalidInput(f"the column {self.id!r} is empty")
        return its_id

    def item(self, object_id: str, values: Mapping[str, Any]) -> Item:
        """Return what a row tells. Raises Unreadable where that is neither a text nor an image."""
        chosen = {name: values.get(name) for name in (*self._own.values(), *self._source.meta)}
        told = item_values(chosen, dict(self._own))
        fields = {
            **_object(told.get("fields")),
            **{one: values.get(one) for one in self._source.fields},
        }
        item = Item(
            object_id,
            text=_text(told.get("text")),
            fields={name: text for name, one in fields.items() if (text := _text(one))},
            image=_text(told.get("image")),
            url=_text(told.get("url")),
            meta=to_jsonable_python(_object(told.get("meta")), fallback=str),
        )
        if not {"text", "image"} & item.content().keys():
            raise Unreadable("it has neither text nor image")
        return item


def item_in(source: Source, object_id: str, content: bytes) -> Item:
    """Return the item that a file tells: a JSON object, whose fields are as columns, or a text.
    Raises Unreadable, InvalidInput."""
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
    return None if value is None else str(as_text(value)).strip() or None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
