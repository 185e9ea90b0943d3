"""Databases in the layout of version 0.1, and how what is in them is brought along.

What is copied is left where it was until all of it is copied; so the command may be interrupted
anywhere and repeated. Nobody else may use the database meanwhile."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from embedding_studio.clickstream import BatchStatus, Session, SessionBatch, SessionEvent, Usage
from embedding_studio.keys import ApiKey
from embedding_studio.models import RegisteredModel
from embedding_studio.projects import DEFAULT_PROJECT
from embedding_studio.schedules import Schedule
from embedding_studio.store.batches import BATCH, BATCHES, pages
from embedding_studio.store.clickstream import Clickstream
from embedding_studio.store.codec import Codec, milliseconds, to_json
from embedding_studio.store.documents import Documents, Entry, new_id
from embedding_studio.store.early import EARLY, MARK
from embedding_studio.store.keys import KEY, KEYS
from embedding_studio.store.models import MODELS, document_of, model_of
from embedding_studio.store.projects import PROJECTS
from embedding_studio.store.schedules import SCHEDULE, Schedules
from embedding_studio.store.sessions import SESSIONS, Sessions, usage_of
from embedding_studio.store.tasks import EVENT, REQUEST, TASK, TASKS
from embedding_studio.store.usage import size_of_request
from embedding_studio.tasks import FineTuningTask, TaskEvent, TaskRequest

SESSION = Codec(Session)


@dataclass(frozen=True, slots=True)
class FormerTask:
    """A task with its history."""

    task: FineTuningTask
    #: what was asked for, to which a repeated request is compared
    request: TaskRequest
    events: list[TaskEvent]


@dataclass(frozen=True, slots=True)
class FormerBatch:
    """A batch; one in release counts as released."""

    project: str
    batch: SessionBatch


@dataclass(frozen=True, slots=True)
class FormerEarly:
    """An event that waits for its session, or the mark that its results were all wrong."""

    project: str
    session_id: str
    event: SessionEvent | None
    expires_at: datetime


FORMER_EARLY = Codec(FormerEarly)


class Former(ABC):
    """What a database in the layout of 0.1 holds, read from the rows that lie there."""

    @abstractmethod
    def rows(self, noun: str) -> Iterator[Mapping[str, Any]]:
        """Give what is kept of a noun, oldest first; none of one that it does not know. Names are
        those of 0.1 in MongoDB."""

    @abstractmethod
    def session_rows(self, batch_id: str) -> Iterator[Mapping[str, Any]]:
        """Give the sessions of a batch by their numbers."""

    @abstractmethod
    def retire(self) -> None:
        """Put all of it out of the way: from here on the database is one of the present layout."""

    def tasks(self) -> Iterator[FormerTask]:
        for row in self.rows("tasks"):
            events = [EVENT.decode(event) for event in row.get("events", ())]
            yield FormerTask(TASK.decode(row), REQUEST.decode(row["request"]), events)

    def batches(self) -> Iterator[FormerBatch]:
        """Give the batches of all projects that are not being deleted."""
        # all at once: copying one may take longer than a server keeps a cursor that waits
        for row in list(self.rows("batches")):
            if row["status"] != "deleting":
                is_collecting = row["status"] == BatchStatus.COLLECTING
                status = BatchStatus.COLLECTING if is_collecting else BatchStatus.RELEASED
                batch = BATCH.decode({"session_count": 0, **row, "status": status})
                yield FormerBatch(row.get("project", DEFAULT_PROJECT), batch)

    def sessions(self, batch_id: str) -> Iterator[Session]:
        return map(SESSION.decode, self.session_rows(batch_id))

    def early(self) -> Iterator[FormerEarly]:
        return map(FORMER_EARLY.decode, self.rows("early_events"))

    def api_keys(self) -> Iterator[ApiKey]:
        return map(KEY.decode, self.rows("api_keys"))

    def schedules(self) -> Iterator[Schedule]:
        return map(SCHEDULE.decode, self.rows("schedules"))

    def models(self) -> Iterator[RegisteredModel]:
        return (model_of(row["document"]) for row in self.rows("models"))


def former_of(documents: Documents) -> Former | None:
    """Return what 0.1 kept in an open database; None if that is one of the present layout."""
    from embedding_studio.store.mongo import MongoDocuments
    from embedding_studio.store.mongo_former import MongoFormer
    from embedding_studio.store.sqlite import SqliteDocuments
    from embedding_studio.store.sqlite_former import SqliteFormer

    if isinstance(documents, SqliteDocuments) and documents.file.is_former:
        return SqliteFormer(documents.file)
    if isinstance(documents, MongoDocuments) and documents.is_former:
        return MongoFormer(documents.database)
    return None


def bring_along(former: Former, documents: Documents) -> Counter[str]:
    """Copy what 0.1 kept into the present layout, and retire it; return how many of each noun."""
    copied: Counter[str] = Counter()
    held: dict[str, Usage] = defaultdict(Usage)
    other_bytes: Counter[str] = Counter()
    for key in former.api_keys():
        documents.insert_one(KEYS, KEY.encode(key))
        copied["keys"] += 1
    for schedule in former.schedules():
        Schedules(documents, schedule.project).add(schedule)
        copied["schedules"] += 1
    for model in former.models():
        its_id = f"{model.project}/{model.name}"
        documents.insert_one(MODELS, {"id": its_id, **document_of(model)})
        copied["models"] += 1
    for one in former.tasks():
        log = [Entry(None, EVENT.encode(event)) for event in one.events]
        beside = {"request": REQUEST.encode(one.request), "log": log}
        documents.insert_one(TASKS, {**TASK.encode(one.task), **beside})
        other_bytes[one.task.project] += size_of_request(one.request)
        copied["tasks"] += 1
    for batch in former.batches():
        size = _copy_batch(batch, former, documents)
        before = held[batch.project]
        held[batch.project] = Usage(before.sessions + size.sessions, before.bytes + size.bytes)
        copied["batches"] += 1
        copied["sessions"] += size.sessions
    for early in former.early():
        waiting = {
            "id": new_id(),
            "project": early.project,
            "session_id": early.session_id,
            "event_id": MARK if early.event is None else early.event.event_id,
            "event": to_json(early.event),
            "expires_at": milliseconds(early.expires_at),
        }
        documents.insert_one(EARLY, waiting)
    for project in held.keys() | other_bytes.keys():
        counted = {
            "sessions": held[project].sessions,
            "bytes": held[project].bytes + other_bytes[project],
            "other_bytes": other_bytes[project],
        }
        documents.insert_one(PROJECTS, {"id": project, **counted})
        documents.change(PROJECTS, {"id": project}, set=counted)
    former.retire()
    return copied


def _copy_batch(former: FormerBatch, source: Former, documents: Documents) -> Usage:
    """Copy a batch with its sessions: it collects them again, and is released again if it was."""
    project, batch = former.project, former.batch
    its_id = batch.batch_id
    there = documents.find_one(BATCHES, {"id": its_id}) or {"status": BatchStatus.COLLECTING.value}
    if is_open := there["status"] == BatchStatus.COLLECTING:
        _open_batch(former, documents)
    sessions = Sessions(documents, project, set())
    count = size = 0
    for page in pages(source.sessions(its_id)):
        new = sessions.documents(page)
        for answer in sessions.insert(new, sessions.register_kinds(new)) if is_open else ():
            if isinstance(answer, Exception):
                raise answer
        held = usage_of(new)
        count, size = count + held.sessions, size + held.bytes
    if batch.status == BatchStatus.RELEASED:
        assert batch.release_id is not None
        assert batch.released_at is not None
        released_at = batch.released_at
        Clickstream(documents, project).release(batch.release_id, released_at, its_id)
    return Usage(count, size)


def _open_batch(former: FormerBatch, documents: Documents) -> None:
    """Have a batch collect, with none of its sessions yet."""
    project, batch = former.project, former.batch
    opened = {
        "batch": batch.batch_id,
        "opened_at": milliseconds(batch.created_at),
        "since": batch.since and milliseconds(batch.since),
    }
    documents.insert_one(PROJECTS, {"id": project, "sessions": 0, "bytes": 0})
    documents.change(PROJECTS, {"id": project}, set=opened)
    collecting = {"status": BatchStatus.COLLECTING.value, "session_count": None}
    unreleased = {"release_id": None, "released_at": None}
    document = {**BATCH.encode(batch), **collecting, **unreleased}
    documents.insert_one(BATCHES, {**document, "id": batch.batch_id, "project": project})
    # what an interrupted call has copied: all of it is copied again, in order
    documents.delete(SESSIONS, {"project": project, "is_waiting": True})
