"""What a MongoDB database in the layout of version 0.1 holds."""

from collections.abc import Iterator
from typing import Any

from bson import ObjectId
from pymongo import ASCENDING
from pymongo.database import Database

from embedding_studio.store.migrate import Former
from embedding_studio.store.mongo import FORMER_COLLECTION, answering

Document = dict[str, Any]
ORDER = {"batches": "ordinal", "early_events": "_id"}
"""What tells which is older, where it is not the time of creation."""
FORMER_COLLECTIONS = (
    "sessions", "tasks", "workers", "api_keys", "schedules", "models", "early_events", "usage",
    "pings",
)  # fmt: skip


class MongoFormer(Former):
    """The collections that 0.1 wrote. An `_id` there is an ObjectId or what its client chose."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database

    def rows(self, noun: str) -> Iterator[Document]:
        order = [(ORDER.get(noun, "created_at"), ASCENDING), ("_id", ASCENDING)]
        for found in self._find(noun, {}, order):
            its_id = str(found["_id"])
            yield {"batch_id": its_id, **found, "id": its_id}

    def session_rows(self, batch_id: str) -> Iterator[Document]:
        of_batch = {"batch_id": ObjectId(batch_id), "is_end": None}
        return self._find("sessions", of_batch, [("number", ASCENDING)])

    def _find(self, name: str, where: Document, sort: list[tuple[str, int]]) -> Iterator[Document]:
        with answering():
            yield from self._database[name].find(where, sort=sort)

    @answering()
    def retire(self) -> None:
        names = {*self._database.list_collection_names()}
        # The one by which the former layout is known comes first: what is left behind by a process
        # that dies here is in nobody's way.
        for name in (FORMER_COLLECTION, *FORMER_COLLECTIONS):
            if name in names:
                self._database[name].rename(f"former.{name}", dropTarget=True)
