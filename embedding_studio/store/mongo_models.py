"""Registered models in MongoDB."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter
from pymongo import ASCENDING
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from embedding_studio.models import RegisteredModel
from embedding_studio.store.base import Store
from embedding_studio.store.mongo_answers import answering

MODEL = TypeAdapter(RegisteredModel)
BY_NAME = [("project", ASCENDING), ("method", ASCENDING)]


class MongoModels(Store):
    _models: Collection[dict[str, Any]]

    @answering()
    def find_model(self, method: str) -> RegisteredModel | None:
        found = self._models.find_one({"project": self.project, "method": method})
        return None if found is None else MODEL.validate_python(found["document"])

    @answering()
    def change_model(self, changed: RegisteredModel) -> RegisteredModel | None:
        after = replace(changed, project=self.project, revision=changed.revision + 1)
        values = {
            "revision": after.revision,
            "is_mirrored": after.is_mirrored,
            "document": MODEL.dump_python(after, mode="json"),
        }
        key = {"project": self.project, "method": changed.method}
        if changed.revision == 0:
            with suppress(DuplicateKeyError):  # another one was the first
                self._models.insert_one({**key, **values})
                return after
            return None
        as_seen = {**key, "revision": changed.revision}
        is_changed = self._models.update_one(as_seen, {"$set": values}).matched_count
        return after if is_changed else None

    @answering()
    def all_models(self, are_mirrored: bool | None = None) -> list[RegisteredModel]:
        wanted = {} if are_mirrored is None else {"is_mirrored": are_mirrored}
        found = self._models.find(wanted, sort=BY_NAME)
        return [MODEL.validate_python(model["document"]) for model in found]
