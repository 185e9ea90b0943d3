"""What projects hold, in MongoDB.

It is counted right after it is stored: a process that dies between the two leaves one post
uncounted, and of several at once each may find room for itself.
"""

from typing import Any

from bson import ObjectId, encode
from pymongo import DESCENDING, WriteConcern
from pymongo.collection import Collection as MongoCollection
from pymongo.database import Database

from embedding_studio.clickstream import Usage
from embedding_studio.store.base import Store
from embedding_studio.store.mongo_answers import answering
from embedding_studio.store.usage import SAMPLE, ensure_within

Document = dict[str, Any]


class MongoUsage(Store):
    _batches: MongoCollection[Document]
    _sessions: MongoCollection[Document]

    def _open_usage(self, database: Database[Document]) -> None:
        quick = WriteConcern(w=1)  # a count that is lost with a server is put up with
        self._usage = database.get_collection("usage", write_concern=quick)
        self._sizes = self._batches.with_options(write_concern=quick)

    @answering()
    def usage(self) -> dict[str, Usage]:
        return {one["_id"]: Usage(one["sessions"], one["bytes"]) for one in self._usage.find()}

    def _ensure_room(self, added: Usage, most: Usage | None) -> None:
        if most is None or added == Usage():
            return
        while (used := self._usage.find_one({"_id": self.project})) is None:
            self._begin_to_count()
        ensure_within(self.project, Usage(used["sessions"], used["bytes"]), added, most)

    def _count(self, batch_id: str | ObjectId | None, added: Usage) -> None:
        """Count what was added, to a batch if to any; negative is what was removed with it."""
        change = {"sessions": added.sessions, "bytes": added.bytes}
        if not self._usage.update_one({"_id": self.project}, {"$inc": change}).matched_count:
            self._begin_to_count()  # what was added is there
        elif batch_id is not None:
            size = {"$inc": {"bytes": added.bytes}}
            self._sizes.update_one({"_id": ObjectId(batch_id)}, size)

    def _begin_to_count(self) -> None:
        """Estimate what a project holds that was there before it was counted."""
        sessions = size = each = 0
        for batch in self._batches.find({"project": self.project}, sort=[("ordinal", DESCENDING)]):
            count = self._sessions.count_documents({"batch_id": batch["_id"], "is_end": None})
            each = each or self._mean_size(batch["_id"])
            self._sizes.update_one({"_id": batch["_id"]}, {"$set": {"bytes": count * each}})
            sessions, size = sessions + count, size + count * each
        begin = {"$setOnInsert": {"sessions": sessions, "bytes": size}}
        self._usage.update_one({"_id": self.project}, begin, upsert=True)

    def _mean_size(self, batch_id: ObjectId) -> int:
        """Return how large a batch's last sessions are, a few of them."""
        last = self._sessions.find(
            {"batch_id": batch_id, "is_end": None}, sort=[("number", DESCENDING)], limit=SAMPLE
        )
        sizes = [len(encode(document)) for document in last]
        return sum(sizes) // len(sizes) if sizes else 0
