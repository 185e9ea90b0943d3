"""What can be found: items, each an id and its content."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from embedding_studio.clickstream import SearchResult, Session, has_content


@dataclass(frozen=True, slots=True)
class Item:
    """Something that a search can show.

    object_id: as sessions name it. text: what there is to read of it; where it has none, the values
    of its fields are. image, url: where these are. meta: what else a method may want of it."""

    object_id: str
    text: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    url: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """Return it as a result carries it in its meta."""
        fields = {name: value for name, value in self.fields.items() if value.strip()}
        text = (self.text or "").strip() or ". ".join(fields.values())
        own = {"text": text, "fields": fields, "image": self.image, "url": self.url}
        return {**self.meta, **{name: value for name, value in own.items() if value}}


class PutStatus(StrEnum):
    """What came of an item that was put."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    INVALID = "invalid"


def without_content(session: Session) -> set[str]:
    """Return the object ids of the results that carry no content of their own."""
    return {one.object_id for one in session.search_results if not has_content(one)}


def completed(result: SearchResult, items: Mapping[str, Item]) -> SearchResult:
    """Return a result that carries no content with that of the item that it names; what it has in
    its meta wins over the item's."""
    item = None if has_content(result) else items.get(result.object_id)
    return result if item is None else replace(result, meta={**item.content(), **result.meta})
