"""What a MongoDB database in the layout of version 0.1 holds."""

from collections.abc import Iterator, Mapping
from typing import Any

from bson import ObjectId
from pydantic import TypeAdapter
from pymongo import ASCENDING
from pymongo.database import Database

from embedding_studio.clickstream import BatchStatus, Session, SessionBatch, SessionEvent
from embedding_studio.keys import ApiKey
from embedding_studio.models import RegisteredModel
from embedding_studio.projects import DEFAULT_PROJECT
from embedding_studio.schedules import Schedule
from embedding_studio.store.migrate import Former, FormerBatch, FormerEarly, FormerTask
from embedding_studio.store.mongo import FORMER_COLLECTION, answering
from embedding_studio.tasks import FineTuningTask, TaskEvent, TaskRequest

Document = dict[str, Any]
OLDEST_FIRST = [("created_at", ASCENDING), ("_id", ASCENDING)]

TASK = TypeAdapter(FineTuningTask)
REQUEST = TypeAdapter(TaskRequest)
TASK_EVENTS = TypeAdapter(list[TaskEvent])
BATCH = TypeAdapter(SessionBatch)
SESSION = TypeAdapter(Session)
EVENT = TypeAdapter(SessionEvent | None)
KEY = TypeAdapter(ApiKey)
SCHEDULE = TypeAdapter(Schedule)
MODEL = TypeAdapter(RegisteredModel)


class MongoFormer(Former):
    """The collections that 0.1 wrote. An `_id` there is an ObjectId or what its client chose."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database

    def tasks(self) -> Iterator[FormerTask]:
        for found in self._find("tasks", sort=OLDEST_FIRST):
            yield FormerTask(
                TASK.validate_python(_with_id(found)),
                REQUEST.validate_python(found["request"]),
                TASK_EVENTS.validate_python(found.get("events", [])),
            )

    def batches(self) -> Iterator[FormerBatch]:
        # all at once: copying one may take longer than a server keeps a cursor that waits
        for found in list(self._find("batches", sort=[("ordinal", ASCENDING)])):
            if found["status"] == "deleting":
                continue
            is_collecting = found["status"] == BatchStatus.COLLECTING
            batch = {
                "session_count": 0,
                **found,
                "batch_id": str(found["_id"]),
                "status": BatchStatus.COLLECTING if is_collecting else BatchStatus.RELEASED,
            }
            yield FormerBatch(found.get("project", DEFAULT_PROJECT), BATCH.validate_python(batch))

    def sessions(self, batch_id: str) -> Iterator[Session]:
        of_batch = {"batch_id": ObjectId(batch_id), "is_end": None}
        for found in self._find("sessions", of_batch, sort=[("number", ASCENDING)]):
            yield SESSION.validate_python(found)

    def early(self) -> Iterator[FormerEarly]:
        for found in self._find("early_events", sort=[("_id", ASCENDING)]):
            event = EVENT.validate_python(found["event"])
            yield FormerEarly(found["project"], found["session_id"], event, found["expires_at"])

    def api_keys(self) -> Iterator[ApiKey]:
        for found in self._find("api_keys", sort=OLDEST_FIRST):
            yield KEY.validate_python(_with_id(found))

    def schedules(self) -> Iterator[Schedule]:
        for found in self._find("schedules", sort=OLDEST_FIRST):
            yield SCHEDULE.validate_python(_with_id(found))

    def models(self) -> Iterator[RegisteredModel]:
        for found in self._find("models"):
            yield MODEL.validate_python(found["document"])

    def _find(self, collection: str, *where: Document, **how: Any) -> Iterator[Document]:
        with answering():
            yield from self._database[collection].find(*where, **how)

    @answering()
    def retire(self) -> None:
        names = {*self._database.list_collection_names()}
        # The one by which the former layout is known comes first: what is left behind by a process
        # that dies here is in nobody's way.
        for name in (FORMER_COLLECTION, *FORMER_COLLECTIONS):
            if name in names:
                self._database[name].rename(f"former.{name}", dropTarget=True)


FORMER_COLLECTIONS = (
    "sessions", "tasks", "workers", "api_keys", "schedules", "models", "early_events", "usage",
    "pings",
)  # fmt: skip


def _with_id(found: Mapping[str, Any]) -> Document:
    return {**found, "id": str(found["_id"])}
