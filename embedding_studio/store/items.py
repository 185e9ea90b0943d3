"""Items as they are kept: a document each, found by the id that sessions name."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from embedding_studio.clickstream import Session, Usage
from embedding_studio.errors import InvalidInput, unknown
from embedding_studio.items import Item, PutStatus, completed, without_content
from embedding_studio.store.batches import pages
from embedding_studio.store.codec import Codec
from embedding_studio.store.documents import Document, Documents, Filter, Kind, above, among
from embedding_studio.store.projects import Projects
from embedding_studio.store.usage import json_size

ITEMS = Kind("items", indexes=(("project", "id"),))
"""`size` is in bytes."""
ITEM = Codec(Item)


class Items:
    """The items of a project. What they take counts as what its sessions do."""

    def __init__(self, documents: Documents, project: str) -> None:
        self._documents = documents
        self._project = project
        self._projects = Projects(documents)

    def put(
        self, items: Sequence[Item], most: Usage | None = None
    ) -> list[PutStatus | InvalidInput]:
        """Keep items in place of what is known of them; answers in the order given, of several with
        one id that of the last. One that the database cannot hold is InvalidInput and keeps no
        other out.

        most: what the project may hold. Raises TooManyRequests, and keeps nothing, where what is
        new of all this would be too much, give or take what others add at the same time."""
        waiting = {one["id"]: one for one in map(self._document, items)}
        answers: dict[str, PutStatus | InvalidInput] = {}
        there = self._there(waiting)
        grows = sum(one["size"] for one in waiting.values()) - sum(map(_size, there.values()))
        reserved, grown = max(0, grows), 0
        self._projects.reserve(self._project, Usage(0, reserved), most, other_bytes=reserved)
        while waiting:
            new = [one for its_id, one in waiting.items() if its_id not in there]
            inserted = self._documents.insert(ITEMS, new) if new else []
            for one, is_in in zip(new, inserted, strict=True):
                if isinstance(is_in, InvalidInput):
                    answers[one["id"]] = _of_item(one, is_in)
                elif is_in:
                    answers[one["id"]], grown = PutStatus.CREATED, grown + _size(one)
            for its_id, seen in there.items():
                replaced = self._replace(seen, waiting[its_id])
                if replaced is not None:
                    answers[its_id] = replaced
                if replaced is PutStatus.UPDATED:
                    grown += _size(waiting[its_id]) - _size(seen)
            waiting = {its_id: one for its_id, one in waiting.items() if its_id not in answers}
            there = self._there(waiting)  # another has put or deleted them meanwhile
        self._projects.give_back_bytes(self._project, reserved - grown)
        return [answers[self._id_of(item.object_id)] for item in items]

    def _replace(self, seen: Document, wanted: Document) -> PutStatus | InvalidInput | None:
        """None, and nothing changed, where it has changed since it was seen."""
        if ITEM.decode(seen) == ITEM.decode(wanted):
            return PutStatus.UNCHANGED
        as_seen = {"id": seen["id"], "size": seen["size"]}
        try:
            changed = self._documents.change(ITEMS, as_seen, set=wanted)
        except InvalidInput as error:
            return _of_item(wanted, error)
        return None if changed is None else PutStatus.UPDATED

    def get(self, object_id: str) -> Item:
        """Return one item. Raises NotFound."""
        found = self.find([object_id])
        if object_id not in found:
            raise unknown("item", object_id)
        return found[object_id]

    def find(self, object_ids: Collection[str]) -> dict[str, Item]:
        """Return those items that there are, by their ids."""
        found = self._there(map(self._id_of, object_ids))
        return {one["object_id"]: ITEM.decode(one) for one in found.values()}

    def complete(self, sessions: Sequence[Session]) -> list[Session]:
        """Return sessions with the content of items in the results that carry none."""
        named = {one for session in sessions for one in without_content(session)}
        items = self.find(named) if named else {}
        return [
            replace(one, search_results=tuple(completed(r, items) for r in one.search_results))
            for one in sessions
        ]

    def page(self, after: str, limit: int) -> list[Item]:
        """Return up to `limit` items in the order of their ids, from behind one id on."""
        behind: Filter = {"project": self._project, "id": above(self._id_of(after))}
        found = self._documents.find(ITEMS, behind, sort=("id",), limit=limit)
        return [*map(ITEM.decode, found)]

    def count(self) -> int:
        """Return how many items there are."""
        return self._documents.count(ITEMS, {"project": self._project})

    def delete(self, object_ids: Collection[str]) -> int:
        """Delete items; return how many of them there were."""
        deleted = freed = 0
        for seen in self._there(map(self._id_of, object_ids)).values():
            if self._documents.delete(ITEMS, {"id": seen["id"], "size": seen["size"]}):
                deleted, freed = deleted + 1, freed + _size(seen)
        self._projects.give_back_bytes(self._project, freed)
        return deleted

    def _there(self, ids: Iterable[str]) -> dict[str, Document]:
        return {
            one["id"]: one
            for some in pages(ids)
            for one in self._documents.find(ITEMS, {"id": among(some)})
        }

    def _document(self, item: Item) -> Document:
        content = ITEM.encode(item)
        its_id = self._id_of(item.object_id)
        return {**content, "id": its_id, "project": self._project, "size": json_size(content)}

    def _id_of(self, object_id: str) -> str:
        return f"{self._project}:{object_id}"


def _size(document: Document) -> int:
    size: int = document["size"]
    return size


def _of_item(document: Document, error: InvalidInput) -> InvalidInput:
    return InvalidInput(f"item {document['object_id']!r}: {error}")
