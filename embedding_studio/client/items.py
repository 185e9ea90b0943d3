"""Calls for what can be found."""

from collections.abc import Collection, Iterable, Iterator

from embedding_studio.client.connection import Connection, bulk_bodies
from embedding_studio.items import Item
from embedding_studio.wire.items import (
    ItemBody,
    ItemOutcome,
    ItemOutcomes,
    ItemPage,
    ItemsDeleted,
)

_IDS_PER_REQUEST = 50  # they stand in the address


class ItemCalls(Connection):
    """What sessions name by their ids."""

    def put_items(self, items: Iterable[Item]) -> list[ItemOutcome]:
        """Keep items in place of what was known of them; the answers are in their order."""
        outcomes: list[ItemOutcome] = []
        given = (ItemBody.of(item).model_dump(warnings=False, exclude_none=True) for item in items)
        for body in bulk_bodies("items", given):
            headers = {"Content-Type": "application/json"}
            response = self._call("PUT", "/items", content=body, headers=headers)
            outcomes += self._read(ItemOutcomes, response).items
        return outcomes

    def get_item(self, object_id: str) -> Item:
        """Return one item. Raises NotFound."""
        return self._get(ItemPage, "/items", object_id=object_id).items[0].to_item()

    def read_items(self, page_size: int = 100) -> Iterator[Item]:
        """Yield all items in the order of their ids."""
        after_id: str | None = ""
        while after_id is not None:
            page = self._get(ItemPage, "/items", after_id=after_id, limit=page_size)
            yield from (body.to_item() for body in page.items)
            after_id = page.last_id

    def delete_items(self, object_ids: Collection[str]) -> int:
        """Delete items; return how many of them there were."""
        ids, deleted = list(object_ids), 0
        for start in range(0, len(ids), _IDS_PER_REQUEST):
            params = {"object_id": ids[start : start + _IDS_PER_REQUEST]}
            response = self._call("DELETE", "/items", params=params)
            deleted += self._read(ItemsDeleted, response).deleted
        return deleted
