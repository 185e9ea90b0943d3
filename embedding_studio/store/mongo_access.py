"""API keys in MongoDB."""

from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from pymongo import ASCENDING
from pymongo.collection import Collection

from embedding_studio.keys import ApiKey
from embedding_studio.store.base import Store, unknown
from embedding_studio.store.mongo_answers import answering

KEY = TypeAdapter(ApiKey)


class MongoKeys(Store):
    _keys: Collection[dict[str, Any]]

    @answering()
    def add_key(self, key: ApiKey) -> None:
        # a retry after a lost answer meets what it inserted itself: ids are random
        self._keys.update_one({"_id": key.id}, {"$setOnInsert": KEY.dump_python(key)}, upsert=True)

    @answering()
    def find_key(self, key_id: str) -> ApiKey | None:
        document = self._keys.find_one({"_id": key_id})
        return None if document is None else KEY.validate_python(document)

    @answering()
    def list_keys(self) -> list[ApiKey]:
        found = self._keys.find(sort=[("created_at", ASCENDING), ("_id", ASCENDING)])
        return [KEY.validate_python(document) for document in found]

    @answering()
    def end_key(
        self,
        key_id: str,
        *,
        expires_at: datetime | None = None,
        revoked_at: datetime | None = None,
    ) -> ApiKey:
        for name, moment in (("expires_at", expires_at), ("revoked_at", revoked_at)):
            if moment is not None:
                is_nearer = {"$or": [{name: None}, {name: {"$gt": moment}}]}
                self._keys.update_one({"_id": key_id, **is_nearer}, {"$set": {name: moment}})
        key = self.find_key(key_id)
        if key is None:
            raise unknown("API key", key_id)
        return key
