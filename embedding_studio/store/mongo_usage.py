"""What projects hold, in MongoDB.

It is counted right after it is stored: a process that dies between the two leaves one post
uncounted, and of several at once each may find room for itself. Whenever batches were deleted the
others are summed up, so that no error stays.
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
# A batch whose deletion has begun; to the outside it is gone.
DELETING = "deleting"


class MongoUsage(Store):
    _batches: MongoCollection[Document]
    _sessions: MongoCollection[Document]

    def _open_usage(self, database: Database[Document]) -> None:
        quick = WriteConcern(w=1)  # a count that is lost with a server is put up with
        self._usage = database.get_collection("usage", write_concern=quick)
        self._sizes = self._batches.with_options(write_concern=quick)

    @answering()
    def usage(self) -> dict[str, Usage]:
        return {one["_id"]: _held(one) for one in self._usage.find()}

    def _ensure_within(self, added: Usage, most: Usage | None) -> None:
        if most is None or added == Usage():
            return
        while (used := self._usage.find_one({"_id": self.project})) is None:
            self._count_batches()
        ensure_within(self.project, _held(used), added, most)

    def _count(self, batch_id: str | ObjectId, added: Usage) -> None:
        """Count what was added to a batch."""
        change = {"sessions": added.sessions, "bytes": added.bytes}
        if self._usage.update_one({"_id": self.project}, {"$inc": change}).matched_count:
            size = {"$inc": {"bytes": added.bytes}}
            self._sizes.update_one({"_id": ObjectId(batch_id)}, size)
        else:
            self._count_batches()  # what was added is there

    def _count_task(self, added: Usage) -> None:
        change = {"$inc": {"task_bytes": added.bytes}}
        if not self._usage.update_one({"_id": self.project}, change).matched_count:
            self._count_batches()
            self._usage.update_one({"_id": self.project}, change)

    def _count_batches(self) -> None:
        """Sum up what is counted of the project's batches; of those that were there before it was
        counted, estimate it."""
        sessions = size = each = 0
        there = {"project": self.project, "status": {"$ne": DELETING}}
        for batch in self._batches.find(there, sort=[("ordinal", DESCENDING)]):
            in_batch = {"batch_id": batch["_id"], "is_end": None}
            # known of a batch that is released
            count = batch.get("session_count") or self._sessions.count_documents(in_batch)
            if (held := batch.get("bytes")) is None:
                each = each or self._mean_size(batch["_id"])
                held = count * each
                self._sizes.update_one({"_id": batch["_id"]}, {"$set": {"bytes": held}})
            sessions, size = sessions + count, size + held
        found = {"$set": {"sessions": sessions, "bytes": size}}
        self._usage.update_one({"_id": self.project}, found, upsert=True)

    def _mean_size(self, batch_id: ObjectId) -> int:
        """Return how large a batch's last sessions are, a few of them."""
        last = self._sessions.find(
            {"batch_id": batch_id, "is_end": None}, sort=[("number", DESCENDING)], limit=SAMPLE
        )
        sizes = [len(encode(document)) for document in last]
        return sum(sizes) // len(sizes) if sizes else 0


def _held(counted: Document) -> Usage:
    # tasks are counted apart: they stay when batches are deleted
    return Usage(counted["sessions"], counted["bytes"] + counted.get("task_bytes", 0))
