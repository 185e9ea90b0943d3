"""Sessions and their batches in MongoDB.

The collection `sessions` is a log. Every session is one insert at the number after its batch's
last, under a unique index on (batch_id, number): of two writers that chose the same number one
fails and looks again, so numbers have no gaps and no counter can run ahead of them. A release
ends the log of its batch with a marker at the next number: whoever finds the marker turns to the
next batch, and whoever raced with it has lost the number and looks again.
"""

import logging
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, NamedTuple

from bson import ObjectId, encode
from bson.errors import BSONError
from pydantic import TypeAdapter
from pymongo import ASCENDING, DESCENDING
from pymongo import errors as mongo_errors
from pymongo.collection import Collection as MongoCollection

from embedding_studio.clickstream import (
    IGNORED_KINDS,
    BatchCount,
    BatchStatus,
    NumberedSession,
    Session,
    SessionBatch,
    SessionEvent,
    Usage,
    fresh_events,
)
from embedding_studio.errors import InvalidInput, StoreUnavailable
from embedding_studio.projects import DEFAULT_PROJECT
from embedding_studio.store.base import (
    PAGE_BYTES,
    EarlyFeedback,
    Registered,
    cannot_release,
    unknown,
)
from embedding_studio.store.mongo_answers import answering, id_of, unstorable
from embedding_studio.store.mongo_early import DUPLICATE_KEY, EVENT, MongoEarly
from embedding_studio.store.mongo_usage import DELETING, MongoUsage
from embedding_studio.store.usage import size_of, size_of_events
from embedding_studio.tasks import TERMINAL

Document = dict[str, Any]
CONTENTION_SECONDS = 20.0
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
WITH_EVENT_IDS = {
    f"events.{field.name}": 0 for field in fields(SessionEvent) if field.name != "event_id"
}
WITHOUT_META = {**WITH_EVENT_IDS, "search_meta": 0, "search_results.meta": 0}
# A batch whose release has begun; to the outside it is still collecting.
RELEASING = "releasing"

BATCH = TypeAdapter(SessionBatch)
SESSION = TypeAdapter(Session)
log = logging.getLogger(__name__)


class Known(NamedTuple):
    """A session that is stored, as if nothing new was posted, and the ids of its events."""

    registered: Registered
    event_ids: set[str]


class MongoClickstream(MongoEarly, MongoUsage):
    _batches: MongoCollection[Document]
    _sessions: MongoCollection[Document]
    _tasks: MongoCollection[Document]

    def _find_shown_kinds(self) -> None:
        """Fill in what is counted of the batches now collecting, where an older version began them;
        of others it is not asked."""
        older = {"status": BatchStatus.COLLECTING, "has_shown_kinds": None}
        for batch in self._batches.find(older):
            for document in self._sessions.find({"batch_id": batch["_id"], "is_end": None}):
                kinds = sorted(SESSION.validate_python(document).shown_kinds())
                added = {"$addToSet": {"shown_kinds": {"$each": kinds}}}
                self._sessions.update_one({"_id": document["_id"]}, added)
            self._batches.update_one({"_id": batch["_id"]}, {"$set": {"has_shown_kinds": True}})

    @answering()
    def register_sessions(
        self, sessions: Sequence[Session], now: datetime, most: Usage | None = None
    ) -> list[Registered | InvalidInput]:
        ids = [s.session_id for s in sessions if _is_encodable(s.session_id)]
        known = self._known(ids, WITH_EVENT_IDS)
        refused: dict[int, InvalidInput] = {}
        new: dict[str, Session] = {}
        for place, session in enumerate(sessions):
            if session.session_id not in known:
                if (refusal := _refusal(self._key(session.session_id), session)) is not None:
                    refused[place] = refusal
                else:
                    new.setdefault(session.session_id, session)
        sizes = {
            session_id: size_of(session) + size_of_events(fresh_events(session.events))
            for session_id, session in new.items()
        }
        added_to_known = sum(
            size_of_events(fresh_events(session.events, known[session.session_id].event_ids))
            for session in sessions
            if session.session_id in known
        )
        self._ensure_within(Usage(len(new), sum(sizes.values()) + added_to_known), most)
        placed = self._place(list(new.values()), sizes, now)
        # those that someone else posted meanwhile
        known |= self._known(new.keys() - placed.keys(), WITH_EVENT_IDS)
        answers: list[Registered | InvalidInput] = []
        for place, session in enumerate(sessions):
            if place in refused:
                answers.append(refused[place])
            elif session.session_id in known:
                answers.append(self._add_to(known[session.session_id], session.events))
            else:
                answers.append(answer := placed[session.session_id])
                if isinstance(answer, Registered):  # if it is posted a second time, it is known
                    again = replace(answer, is_new=False, new_events=0, is_late=False)
                    known[session.session_id] = Known(again, _ids_of(session.events))
        joined = self._join_early(known, now)
        return [
            replace(answer, early_events=joined.pop(answer.stored.session.session_id, 0))
            if isinstance(answer, Registered)
            else answer
            for answer in answers
        ]

    @answering()
    def keep_early(
        self, feedback: EarlyFeedback, now: datetime, expires_at: datetime, most: int
    ) -> bool:
        if not self._add_early(feedback, now, expires_at, most):
            return False
        # looked up only now: a session that comes from here on finds what waits for it
        self._join_early(self._known([feedback.session_id]), now)
        return True

    def _join_early(self, known: Mapping[str, Known], now: datetime) -> dict[str, int]:
        """Have what waits for sessions that are stored join them; return how many events did."""
        joined = {}
        for session_id, waiting in (self._find_early(known, now) if known else {}).items():
            if waiting.is_irrelevant:
                self.mark_irrelevant(session_id)
            answer = self._add_to(known[session_id], waiting.events)
            if isinstance(answer, Registered):
                joined[session_id] = answer.new_events
            else:
                log.warning("session %r cannot take what came before it: %s", session_id, answer)
            self._drop_early(waiting)
        return joined

    def _add_to(self, known: Known, events: Sequence[SessionEvent]) -> Registered | InvalidInput:
        try:
            with answering():
                return replace(known.registered, new_events=self._push(known, events))
        except InvalidInput as error:
            return InvalidInput(f"session {known.registered.stored.session.session_id!r}: {error}")

    def _key(self, session_id: str) -> str:
        """Return a session's _id: its own id is its client's choice, and free in each project."""
        if self.project == DEFAULT_PROJECT:
            return f"s:{session_id}"
        return f"p:{self.project}:{session_id}"

    def _known(
        self, session_ids: Iterable[str], left_out: Mapping[str, int] = WITHOUT_META
    ) -> dict[str, Known]:
        """Return those sessions that are stored, by their ids."""
        keys = [self._key(session_id) for session_id in session_ids]
        found = list(self._sessions.find({"_id": {"$in": keys}}, left_out)) if keys else []
        ids = list({document["batch_id"] for document in found})
        collecting = {"_id": {"$in": ids}, "status": BatchStatus.COLLECTING}
        open_ids = {batch["_id"] for batch in self._batches.find(collecting, {"_id": 1})}
        return {
            document["session_id"]: Known(
                Registered(
                    is_new=False,
                    new_events=0,
                    stored=_numbered({**document, "events": []}),
                    is_late=document["batch_id"] not in open_ids,
                ),
                {event["event_id"] for event in document["events"]},
            )
            for document in found
        }

    def _place(
        self, sessions: Sequence[Session], sizes: Mapping[str, int], now: datetime
    ) -> dict[str, Registered | InvalidInput]:
        """Insert each session at the end of the log; return those that were not there before.

        sizes: in bytes, by their ids."""
        placed: dict[str, Registered | InvalidInput] = {}
        waiting = list(sessions)
        give_up = time.monotonic() + CONTENTION_SECONDS
        while waiting:
            batch, number = self._end_of_log(now)
            documents = [
                _session_document(self._key(session.session_id), session, batch["_id"], place)
                for place, session in enumerate(waiting, start=number)
            ]
            inserted, refusal = self._insert_run(documents)
            if inserted:
                size = sum(sizes[session.session_id] for session in waiting[:inserted])
                self._count(batch["_id"], Usage(inserted, size))
            for session, document in zip(waiting, documents[:inserted], strict=False):
                stored = NumberedSession(session, str(batch["_id"]), document["number"])
                since = batch.get("since")
                is_late = since is not None and session.created_at < since
                placed[session.session_id] = Registered(
                    True, len(document["events"]), stored, is_late
                )
            waiting = waiting[inserted:]
            if refusal is not None:
                placed[waiting.pop(0).session_id] = refusal
            elif waiting and self._sessions.find_one(
                {"_id": self._key(waiting[0].session_id)}, {"_id": 1}
            ):
                waiting.pop(0)  # posted by someone else meanwhile: its number is not ours to burn
            elif waiting and time.monotonic() > give_up:
                raise StoreUnavailable("too many writers at once: no place in the batch was free")
            elif waiting:
                time.sleep(random.uniform(0, 0.01))
        return placed

    def _insert_run(self, documents: Sequence[Document]) -> tuple[int, InvalidInput | None]:
        """Insert documents until one is refused; return how many went in, and why the next did not
        if it is not for a key that is there already."""
        try:
            self._sessions.insert_many(documents, ordered=True)
        except mongo_errors.BulkWriteError as error:
            failed = error.details["writeErrors"]
            if failed and failed[0]["code"] == DUPLICATE_KEY:
                return int(failed[0]["index"]), None
            if (refusal := unstorable(error)) is None:
                raise
            return int(failed[0]["index"]), refusal
        return len(documents), None

    def _end_of_log(self, now: datetime) -> tuple[Document, int]:
        """Return the collecting batch, opened if there is none, and the number after its last."""
        while True:
            newest = self._newest_batch()
            if newest is None or newest["status"] == BatchStatus.RELEASED:
                self._open_batch(newest, now)
            elif newest["status"] == RELEASING:
                self._finish_release(newest)
            else:
                last = self._last_entry(newest["_id"])
                if not last.get("is_end"):
                    return newest, last["number"] + 1

    def _newest_batch(self) -> Document | None:
        return self._batches.find_one({"project": self.project}, sort=[("ordinal", DESCENDING)])

    def _open_batch(self, last: Document | None, now: datetime) -> None:
        if last is None:
            self._count_batches()
        batch = {
            "project": self.project,
            "ordinal": 1 if last is None else last["ordinal"] + 1,
            "status": BatchStatus.COLLECTING,
            "created_at": now,
            "has_shown_kinds": True,
            "bytes": 0,
            "since": last and last["released_at"],
        }
        with suppress(mongo_errors.DuplicateKeyError):  # someone else opened it
            self._batches.insert_one(batch)

    def _last_entry(self, batch_id: ObjectId) -> Document:
        last = self._sessions.find_one(
            {"batch_id": batch_id}, {"number": 1, "is_end": 1}, sort=[("number", DESCENDING)]
        )
        return last or {"number": 0}

    def _push(self, known: Known, events: Sequence[SessionEvent]) -> int:
        """Add the events that the session does not have in one atomic step; return how many."""
        session = known.registered.stored.session
        while fresh := fresh_events(events, known.event_ids):
            adding = {
                "$push": {"events": {"$each": [_event_document(event) for event in fresh]}},
                "$addToSet": {
                    "shown_kinds": {
                        "$each": sorted(replace(session, events=tuple(fresh)).shown_kinds())
                    }
                },
            }
            is_new = {"$nin": [event.event_id for event in fresh]}
            which = {"_id": self._key(session.session_id), "events.event_id": is_new}
            if self._sessions.update_one(which, adding).modified_count:
                batch_id = known.registered.stored.batch_id
                self._count(batch_id, Usage(0, size_of_events(fresh)))
                return len(fresh)
            again = self._known([session.session_id])
            if not again:
                break  # deleted meanwhile, with its batch
            known = again[session.session_id]
        return 0

    @answering()
    def get_session(self, session_id: str) -> NumberedSession:
        document = self._sessions.find_one({"_id": self._key(session_id)})
        if document is None:
            raise unknown("session", session_id, ": register it first")
        return _numbered(document)

    @answering()
    def append_events(
        self, session_id: str, events: Sequence[SessionEvent], most: Usage | None = None
    ) -> Registered:
        known = self._known([session_id]).get(session_id)
        if known is None:
            raise unknown("session", session_id, ": register it first")
        fresh = fresh_events(events, known.event_ids)
        self._ensure_within(Usage(0, size_of_events(fresh)), most)
        answer = self._add_to(known, events)
        if isinstance(answer, InvalidInput):
            raise answer
        return answer

    @answering()
    def mark_irrelevant(self, session_id: str) -> None:
        marked = self._sessions.update_one(
            {"_id": self._key(session_id)}, {"$set": {"is_irrelevant": True}}
        )
        if not marked.matched_count:
            raise unknown("session", session_id, ": register it first")

    @answering()
    def release_batch(
        self, release_id: str, now: datetime, batch_id: str | None = None
    ) -> SessionBatch:
        while True:
            collecting = self._releasable_batch()
            # Asked only now: if this very release took that batch meanwhile, it is seen here.
            if (released := self.find_release(release_id)) is not None:
                return released
            if collecting is None or batch_id not in (None, str(collecting["_id"])):
                raise cannot_release(self.get_batch(batch_id) if batch_id else None)
            with suppress(mongo_errors.DuplicateKeyError):  # asked for twice at once
                self._batches.update_one(
                    {"_id": collecting["_id"], "status": BatchStatus.COLLECTING},
                    {"$set": {"status": RELEASING, "release_id": release_id, "released_at": now}},
                )

    @answering()
    def find_release(self, release_id: str) -> SessionBatch | None:
        released = self._batches.find_one({"project": self.project, "release_id": release_id})
        return None if released is None else self._batch(released)

    def _releasable_batch(self) -> Document | None:
        newest = self._newest_batch()
        if newest is not None and newest["status"] == RELEASING:
            newest = self._finish_release(newest)
        if newest is None or newest["status"] == BatchStatus.RELEASED:
            return None
        return newest if self._last_entry(newest["_id"])["number"] else None

    def _finish_release(self, batch: Document) -> Document:
        """End the log of a batch in release and call it released: anyone may, any number do."""
        last = self._last_entry(batch["_id"])
        while not last.get("is_end"):
            end = {"_id": f"e:{batch['_id']}", "is_end": True, "batch_id": batch["_id"]}
            # A session, or this marker set by another, may have been quicker.
            with suppress(mongo_errors.DuplicateKeyError):
                self._sessions.insert_one({**end, "number": last["number"] + 1})
            last = self._last_entry(batch["_id"])
        changes = {"status": BatchStatus.RELEASED, "session_count": last["number"] - 1}
        self._batches.update_one({"_id": batch["_id"]}, {"$set": changes})
        return {**batch, **changes}

    def _batch(self, document: Document) -> SessionBatch:
        if document["status"] == RELEASING:
            document = self._finish_release(document)
        if document["status"] == BatchStatus.COLLECTING:
            last = self._last_entry(document["_id"])
            # The marker is there already if a release began since the batch was read.
            document = {**document, "session_count": last["number"] - last.get("is_end", False)}
        return BATCH.validate_python({**document, "batch_id": str(document["_id"])})

    @answering()
    def get_batch(self, batch_id: str) -> SessionBatch:
        return self._batch(self._find_batch(batch_id))

    @answering()
    def collecting_batch(self) -> SessionBatch | None:
        batch = self._releasable_batch()
        return None if batch is None else self._batch(batch)

    @answering()
    def add_counts(self, batch_id: str, counts: Mapping[BatchCount, int]) -> None:
        which = {"_id": id_of(batch_id), "project": self.project}
        added = {f"counts.{name}": count for name, count in counts.items()}
        if not self._batches.update_one(which, {"$inc": added}).matched_count:
            raise unknown("batch", batch_id)

    @answering()
    def count_clicked_sessions(
        self, batch_id: str, ignored_kinds: Collection[str] = IGNORED_KINDS
    ) -> int:
        batch = self._find_batch(batch_id)
        # above "": so that the index leads to sessions with such an event alone
        is_counted = {"$elemMatch": {"$gt": "", "$nin": sorted(ignored_kinds)}}
        return self._sessions.count_documents(
            {"batch_id": batch["_id"], "shown_kinds": is_counted, "is_irrelevant": False}
        )

    @answering()
    def delete_older_batches(self, keep: int) -> list[str]:
        at_work = {"project": self.project, "status": {"$nin": sorted(TERMINAL)}}
        needed = {task.get("batch_id") for task in self._tasks.find(at_work, {"batch_id": 1})}
        released = self._batches.find(
            {"project": self.project, "status": BatchStatus.RELEASED},
            sort=[("ordinal", DESCENDING)],
            skip=keep,
        )
        older = [batch["_id"] for batch in released if str(batch["_id"]) not in needed]
        # from here on nobody finds it, and whoever comes after an interruption goes on
        self._batches.update_many({"_id": {"$in": older}}, {"$set": {"status": DELETING}})
        deleted = []
        for batch in self._batches.find({"project": self.project, "status": DELETING}):
            self._sessions.delete_many({"batch_id": batch["_id"]})
            self._batches.delete_one({"_id": batch["_id"]})
            deleted.append(str(batch["_id"]))
        self._count_batches()  # also where none were: somebody may have died right before this
        return deleted

    def _find_batch(self, batch_id: str) -> Document:
        which = {"_id": id_of(batch_id), "project": self.project}
        batch = self._batches.find_one({**which, "status": {"$ne": DELETING}})
        if batch is None:
            raise unknown("batch", batch_id)
        return batch

    @answering()
    def read_batch(
        self, batch_id: str, after_number: int, limit: int, events_limit: int | None = None
    ) -> list[NumberedSession]:
        batch = self._find_batch(batch_id)
        if limit < 1:
            return []  # to MongoDB a limit of 0 means none
        found = self._sessions.find(
            {"batch_id": batch["_id"], "number": {"$gt": after_number}, "is_end": None},
            None if events_limit is None else {"events": {"$slice": events_limit}},
            sort=[("number", ASCENDING)],
            limit=limit,
            batch_size=limit,
        )
        page: list[NumberedSession] = []
        size = 0
        with found:
            for document in found:
                size += len(encode(document))
                if page and size > PAGE_BYTES:
                    break
                page.append(_numbered(document))
        return page


def _ids_of(events: Iterable[SessionEvent]) -> set[str]:
    return {event.event_id for event in events}


def _is_encodable(text: str) -> bool:
    return text.encode(errors="ignore").decode() == text


def _refusal(key: str, session: Session) -> InvalidInput | None:
    """Return why no document can hold the session, if none can."""
    try:
        size_bytes = len(encode(_session_document(key, session, ObjectId(), 0)))
    except (BSONError, OverflowError, UnicodeEncodeError) as error:
        return InvalidInput(f"session {session.session_id!r}: MongoDB cannot store this: {error}")
    if size_bytes > MAX_DOCUMENT_BYTES:
        return InvalidInput(
            f"session {session.session_id!r}: MongoDB cannot store this: it has {size_bytes} bytes "
            f"as BSON, and a document has {MAX_DOCUMENT_BYTES} at most; post fewer results or less "
            "meta"
        )
    return None


def _session_document(key: str, session: Session, batch_id: ObjectId, number: int) -> Document:
    return {
        "_id": key,
        "batch_id": batch_id,
        "number": number,
        **SESSION.dump_python(session),
        "events": [_event_document(event) for event in fresh_events(session.events)],
        "shown_kinds": sorted(session.shown_kinds()),
    }


def _event_document(event: SessionEvent) -> Document:
    document: Document = EVENT.dump_python(event, exclude={"weight"})
    return document


def _numbered(document: Mapping[str, Any]) -> NumberedSession:
    return NumberedSession(
        SESSION.validate_python(document), str(document["batch_id"]), document["number"]
    )
