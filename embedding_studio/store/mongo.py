"""The production store: MongoDB, a standalone server or a replica set, without transactions."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from bson import CodecOptions, ObjectId, encode
from pydantic import TypeAdapter
from pymongo import (
    ASCENDING,
    DESCENDING,
    MongoClient,
    ReadPreference,
    ReturnDocument,
    WriteConcern,
)
from pymongo import errors as mongo_errors
from pymongo.collection import Collection as MongoCollection
from pymongo.read_concern import ReadConcern

from embedding_studio.clickstream import Usage
from embedding_studio.clock import latest_end
from embedding_studio.errors import (
    ConfigurationError,
    StoreUnavailable,
)
from embedding_studio.projects import DEFAULT_PROJECT
from embedding_studio.store.base import ensure_page, ensure_room, unknown
from embedding_studio.store.deliveries import TaskDeliveries
from embedding_studio.store.mongo_access import MongoKeys
from embedding_studio.store.mongo_answers import answering, id_of
from embedding_studio.store.mongo_clickstream import MongoClickstream
from embedding_studio.store.mongo_models import BY_NAME, MongoModels
from embedding_studio.store.mongo_schedules import MongoSchedules
from embedding_studio.store.moves import TaskMoves, created, ensure_same_request, new_task
from embedding_studio.store.usage import size_of_request
from embedding_studio.tasks import (
    OWNED,
    TERMINAL,
    Claim,
    FineTuningTask,
    NumberedTaskEvent,
    TaskEvent,
    TaskRequest,
    TaskStatus,
)
from embedding_studio.workers import WorkerRecord

Document = dict[str, Any]
DEFAULT_DATABASE = "embedding_studio"
ANSWER_MS = 20_000
CLIENT_DEFAULTS: dict[str, Any] = {
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": ANSWER_MS,
}
OLDEST_FIRST = [("created_at", ASCENDING), ("_id", ASCENDING)]
NEWEST_FIRST = [("created_at", DESCENDING), ("_id", DESCENDING)]
INDEX_NOT_FOUND = 27
WITHOUT_EVENTS = {"events": 0}  # a task's history is read by pages alone

TASK = TypeAdapter(FineTuningTask)
TASK_EVENT = TypeAdapter(TaskEvent)
WORKER = TypeAdapter(WorkerRecord)


class MongoStore(
    TaskMoves, TaskDeliveries, MongoClickstream, MongoKeys, MongoModels, MongoSchedules
):
    """url: mongodb://host/database; a timeout in it wins over CLIENT_DEFAULTS.

    client: an open client to use instead of one made from the url; closed with the store.
    """

    def __init__(self, url: str, client: MongoClient[Document] | None = None) -> None:
        self._client = client or _connect(url)
        try:
            with answering():
                level = "local" if client else _durable_level(self._client)
                self._open(unquote(urlsplit(url).path.lstrip("/")) or DEFAULT_DATABASE, level)
        except Exception:
            self.close()
            raise

    def _open(self, name: str, read_level: str) -> None:
        database = self._client.get_database(
            name,
            codec_options=CodecOptions(tz_aware=True),
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern(w="majority", j=True, wtimeout=ANSWER_MS),
            read_concern=ReadConcern(read_level),
        )
        self._batches = database["batches"]
        self._sessions = database["sessions"]
        self._tasks = database["tasks"]
        self._workers = database["workers"]
        self._keys = database["api_keys"]
        self._schedules = database["schedules"]
        self._models = database["models"]
        self._early = database["early_events"]
        self._pings = database["pings"]
        self._open_usage(database)
        self._adopt_older_documents()
        # not a partial one: it also finds a project's newest batch
        self._batches.create_index([("project", ASCENDING), ("ordinal", ASCENDING)], unique=True)
        _make_unique(self._batches, "release_id")
        _make_unique(self._tasks, "idempotency_key")
        self._sessions.create_index([("batch_id", ASCENDING), ("number", ASCENDING)], unique=True)
        self._sessions.create_index([("batch_id", ASCENDING), ("shown_kinds", ASCENDING)])
        self._find_shown_kinds()
        self._tasks.create_index([("status", ASCENDING), *OLDEST_FIRST])
        self._tasks.create_index([("project", ASCENDING), *OLDEST_FIRST])
        self._tasks.create_index([("project", ASCENDING), ("status", ASCENDING), *OLDEST_FIRST])
        self._tasks.create_index("delivery_due_at", sparse=True)
        self._models.create_index(BY_NAME, unique=True)
        self._index_early()

    def _adopt_older_documents(self) -> None:
        """Bring a database from before there were projects up to date: what is in it belongs to
        the default one. Repeating it is safe, and so is doing it in several processes at once."""
        for collection in (self._batches, self._tasks):
            collection.update_many({"project": None}, {"$set": {"project": DEFAULT_PROJECT}})
        for collection, former_index in (
            (self._batches, "ordinal_1"),
            (self._batches, "release_id_1"),
            (self._tasks, "idempotency_key_1"),
        ):
            if former_index in collection.index_information():
                try:
                    collection.drop_index(former_index)
                except mongo_errors.OperationFailure as error:
                    if error.code != INDEX_NOT_FOUND:  # another process was quicker
                        raise

    # -- tasks, as their clients see them --------------------------------------------------------

    @answering()
    def add_task(
        self,
        request: TaskRequest,
        now: datetime,
        most_pending: int | None = None,
        most: Usage | None = None,
    ) -> tuple[FineTuningTask, bool]:
        task = {
            **new_task(self.project, request, now),
            "events": [TASK_EVENT.dump_python(created(now))],
        }
        added = Usage(0, size_of_request(request))
        if request.idempotency_key is None:
            del task["idempotency_key"]  # the partial index would take None for a key
        if request.idempotency_key is None or self._with_key(request.idempotency_key) is None:
            ensure_room(self.count_tasks(TaskStatus.PENDING), most_pending)
            self._ensure_within(added, most)
        try:
            self._tasks.insert_one(task)
        except mongo_errors.DuplicateKeyError:
            stored = self._with_key(request.idempotency_key)
            if stored is None:
                raise StoreUnavailable("the task is just being added by another call") from None
            ensure_same_request(str(stored["_id"]), stored["request"], request)
            return _task(stored), False
        self._count_task(added)
        return _task(task), True

    @answering()
    def get_task(self, task_id: str) -> FineTuningTask:
        document = self._tasks.find_one(self._which(task_id), WITHOUT_EVENTS)
        if document is None:
            raise unknown("fine-tuning task", task_id)
        return _task(document)

    @answering()
    def find_task(self, idempotency_key: str) -> FineTuningTask | None:
        document = self._with_key(idempotency_key)
        return None if document is None else _task(document)

    def _with_key(self, idempotency_key: str | None) -> Document | None:
        key = {"project": self.project, "idempotency_key": idempotency_key}
        return self._tasks.find_one(key, WITHOUT_EVENTS)

    def _which(self, task_id: str) -> Document:
        return {"_id": id_of(task_id), "project": self.project}

    @answering()
    def list_tasks(
        self, status: TaskStatus | None = None, skip: int = 0, limit: int = 100
    ) -> list[FineTuningTask]:
        if limit < 1:
            return []
        newest = self._tasks.find(
            {"project": self.project, **({} if status is None else {"status": status})},
            WITHOUT_EVENTS,
            sort=NEWEST_FIRST,
            skip=skip,
            limit=limit,
        )
        tasks, total = [], 0
        for document in newest:
            ensure_page(total := total + len(encode(document.get("metadata") or {})))
            tasks.append(_task(document))
        return tasks

    @answering()
    def count_tasks(self, status: TaskStatus) -> int:
        return self._tasks.count_documents({"project": self.project, "status": status})

    @answering()
    def waiting_for_batch(self) -> FineTuningTask | None:
        not_ended = {"$in": sorted(set(TaskStatus) - TERMINAL)}
        of_project = {"project": self.project, "status": not_ended, "batch_id": None}
        oldest = self._tasks.find_one(of_project, WITHOUT_EVENTS, sort=OLDEST_FIRST)
        return _task(oldest) if oldest else None

    @answering()
    def list_events(
        self, task_id: str, after_number: int = 0, limit: int = 100
    ) -> list[NumberedTaskEvent]:
        page = {"events": {"$slice": [after_number, max(1, limit)]}}
        document = self._tasks.find_one(self._which(task_id), page)
        if document is None:
            raise unknown("fine-tuning task", task_id)
        return [
            NumberedTaskEvent(number, TASK_EVENT.validate_python(event))
            for number, event in enumerate(
                document.get("events", [])[:limit], start=after_number + 1
            )
        ]

    @answering()
    def _oldest_claimable(
        self, now: datetime, skip_methods: frozenset[str]
    ) -> FineTuningTask | None:
        at_work = {"status": {"$in": sorted(OWNED)}}
        ends = [None, {"$lte": now}, {"$gt": latest_end(now)}]
        is_expired = {"$or": [{"lease_expires_at": end} for end in ends]}
        oldest = self._tasks.find_one(
            {
                "$or": [{"status": TaskStatus.PENDING}, {**at_work, **is_expired}],
                "fine_tuning_method": {"$nin": sorted(skip_methods)},
            },
            WITHOUT_EVENTS,
            sort=OLDEST_FIRST,
        )
        return _task(oldest) if oldest else None

    @answering()
    def tasks_at_work(self) -> list[FineTuningTask]:
        at_work = self._tasks.find({"status": {"$in": sorted(OWNED)}}, WITHOUT_EVENTS)
        return [_task(document) for document in at_work]

    @answering()
    def _oldest_due(self, now: datetime, skip_projects: Collection[str]) -> FineTuningTask | None:
        due = self._tasks.find_one(
            {
                "delivery_due_at": {"$lte": now},
                "status": {"$in": sorted(TERMINAL)},
                "project": {"$nin": sorted(skip_projects)},
            },
            WITHOUT_EVENTS,
            sort=[("delivery_due_at", ASCENDING), ("_id", ASCENDING)],
        )
        return _task(due) if due else None

    @answering()
    def _change_delivery(
        self, seen: FineTuningTask, changes: Mapping[str, Any]
    ) -> FineTuningTask | None:
        as_seen = {
            "_id": ObjectId(seen.id),
            "status": seen.status,
            "delivery_due_at": seen.delivery_due_at,
        }
        return self._change_task(as_seen, changes, ())

    @answering()
    def _change_seen(
        self, seen: FineTuningTask, changes: Mapping[str, Any], *events: TaskEvent
    ) -> FineTuningTask | None:
        as_seen = {
            "_id": ObjectId(seen.id),
            "attempt": seen.attempt,
            "status": seen.status,
            "lease_expires_at": seen.lease_expires_at,
        }
        return self._change_task(as_seen, changes, events)

    @answering()
    def _change_owned(
        self,
        claim: Claim,
        statuses: Collection[TaskStatus],
        changes: Mapping[str, Any],
        *events: TaskEvent,
        once: bool = False,
    ) -> FineTuningTask | None:
        owned = {
            "_id": id_of(claim.task_id),
            "attempt": claim.attempt,
            "status": {"$in": sorted(statuses)},
        }
        return self._change_task(owned, changes, events, once)

    def _change_task(
        self,
        which: Document,
        changes: Mapping[str, Any],
        events: Sequence[TaskEvent],
        once: bool = False,
    ) -> FineTuningTask | None:
        update: Document = {"$set": changes}
        if events:
            adding = "$addToSet" if once else "$push"
            update[adding] = {"events": {"$each": [*map(TASK_EVENT.dump_python, events)]}}
        changed = self._tasks.find_one_and_update(
            which, update, WITHOUT_EVENTS, return_document=ReturnDocument.AFTER
        )
        return _task(changed) if changed else None

    # -- workers ---------------------------------------------------------------------------------

    @answering()
    def record_worker(self, worker: WorkerRecord) -> datetime:
        recorded = self._workers.find_one_and_update(
            {"_id": worker.worker_id},
            {"$set": WORKER.dump_python(worker), "$currentDate": {"recorded_at": True}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        assert recorded is not None
        recorded_at: datetime = recorded["recorded_at"]
        return recorded_at

    @answering()
    def list_workers(self, seen_after: datetime) -> list[WorkerRecord]:
        seen = self._workers.find({"seen_at": {"$gt": seen_after}}, sort=[("_id", ASCENDING)])
        return [WORKER.validate_python(document) for document in seen]

    @answering()
    def remove_worker(self, worker_id: str) -> None:
        self._workers.delete_one({"_id": worker_id})

    # -- life cycle ------------------------------------------------------------------------------

    @answering()
    def ping(self) -> None:
        self._pings.update_one({"_id": "last"}, {"$currentDate": {"at": True}}, upsert=True)

    def close(self) -> None:
        self._client.close()


def _connect(url: str) -> MongoClient[Document]:
    try:
        chosen = {name.lower() for name in parse_qs(urlsplit(url).query)}
        defaults = {
            name: value for name, value in CLIENT_DEFAULTS.items() if name.lower() not in chosen
        }
        return MongoClient(url, **defaults)
    except (mongo_errors.ConfigurationError, mongo_errors.InvalidURI, ValueError) as error:
        raise ConfigurationError(f"ES_STORE_URL is no usable MongoDB URL: {error}") from error


def _durable_level(client: MongoClient[Document]) -> str:
    """Return the read concern under which nothing read is rolled back: gaps would come of it."""
    hello = client.admin.command("hello")
    return "majority" if "setName" in hello else "local"


def _make_unique(collection: MongoCollection[Document], name: str) -> None:
    """Have a value, where it is there, be unique in each project."""
    collection.create_index(
        [("project", ASCENDING), (name, ASCENDING)],
        unique=True,
        partialFilterExpression={name: {"$exists": True}},
    )


def _task(document: Mapping[str, Any]) -> FineTuningTask:
    return TASK.validate_python({**document, "id": str(document["_id"])})
