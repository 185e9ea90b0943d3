"""The clickstream of a project: sessions that are posted, and what happened to them."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple, Self

from embedding_studio.clickstream import (
    IGNORED_KINDS,
    BatchCount,
    EarlyFeedback,
    NumberedSession,
    Session,
    SessionBatch,
    SessionEvent,
    TimeRange,
    Usage,
    fresh_events,
)
from embedding_studio.errors import InvalidInput, TooManyRequests, unknown
from embedding_studio.store.batches import Batches
from embedding_studio.store.codec import milliseconds
from embedding_studio.store.documents import Document, Documents
from embedding_studio.store.early import Early
from embedding_studio.store.projects import Projects
from embedding_studio.store.sessions import Sessions, session_of, usage_of
from embedding_studio.store.usage import size_of_events

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """What happened to a session that was posted, or to which events were."""

    is_new: bool
    #: how many of the posted events the session did not have
    new_events: int
    #: the session as it is kept; of its events there may be none
    stored: Session
    #: the one it is in, or will be unless that is released before it is placed
    batch_id: str
    #: of a new session, that it was made before the last release, after which it came; of a known
    #: one, that its batch is released
    is_late: bool = False
    #: how many events had come before the session, and joined it now
    early_events: int = 0


class _Added(NamedTuple):
    """What adding events to a session came to."""

    document: Document
    events: int
    size: int


class Clickstream:
    """The sessions of one project and their batches."""

    def __init__(
        self,
        documents: Documents,
        project: str,
        known_kinds: set[tuple[str, str]] | None = None,
    ) -> None:
        self._documents = documents
        self._project = project
        self._known_kinds = set() if known_kinds is None else known_kinds
        self._projects = Projects(documents)
        self._early = Early(documents, project)
        self._sessions = Sessions(documents, project, self._known_kinds)
        self._batches = Batches(documents, project, self._sessions)

    def in_project(self, project: str) -> Self:
        """Return the clickstream of another project."""
        return type(self)(self._documents, project, self._known_kinds)

    def register(
        self, sessions: Sequence[Session], now: datetime, most: Usage | None = None
    ) -> list[Registered | InvalidInput]:
        """Add sessions with their events to the batch now collecting, opening one if none is.

        Answers in the order given. Of a session that the database cannot hold, with the events that
        it brings, nothing is kept: its answer is InvalidInput, and the others are kept. A known
        session_id keeps its stored query, results, mark and number; only events with unknown
        event_ids are added to it. Numbers in a batch run from 1 without gaps, whatever is posted
        again or at the same time; erased sessions leave theirs empty. A session is in exactly one
        batch, also when that batch is being released meanwhile.

        most: what the project may hold. Raises TooManyRequests, and keeps nothing, where what is
        new of all this would be too much, give or take what others add at the same time.
        """
        if not sessions:
            return []
        first: dict[str, Session] = {}
        for session in sessions:
            first.setdefault(session.session_id, session)
        documents = self._sessions.documents(first.values())
        refused = self._sessions.register_kinds(documents)
        again = [session for session in sessions if session is not first[session.session_id]]

        def insert() -> tuple[Usage, Document, list[bool | InvalidInput]]:
            reserved = usage_of(documents)
            reserved = Usage(reserved.sessions, reserved.bytes + _size_of_events(again))
            try:
                project = self._projects.reserve(self._project, reserved, most)
            except TooManyRequests:
                # some of it may be there already
                reserved = self._missing(sessions, documents)
                project = self._projects.reserve(self._project, reserved, most)
            project = self._batches.open(project, now)
            return reserved, project, self._sessions.insert(documents, refused)

        reserved, project, inserted = self._documents.together(insert)
        answers = dict(zip(first, inserted, strict=True))
        outcomes, size_of_added = self._outcomes(sessions, first, answers, project)
        used = usage_of(one for one in documents if answers[one["session_id"]] is True)
        unused = Usage(
            reserved.sessions - used.sessions, reserved.bytes - used.bytes - size_of_added
        )
        if unused != Usage():
            self._projects.give_back(self._project, unused)
        # the database may not even look for the id of one that it refused
        kept = [one for one, answer in answers.items() if not isinstance(answer, InvalidInput)]
        joined = self._join_early(kept, now)
        outcomes = [
            replace(answer, early_events=count)
            if isinstance(answer, Registered) and (count := joined.pop(answer.stored.session_id, 0))
            else answer
            for answer in outcomes
        ]
        return self._instead_of_refused(sessions, outcomes, now, most)

    def _instead_of_refused(
        self,
        sessions: Sequence[Session],
        outcomes: list[Registered | InvalidInput],
        now: datetime,
        most: Usage | None,
    ) -> list[Registered | InvalidInput]:
        """Try those that came second, where the first of their session_id is refused."""
        refused: set[str] = set()
        others: dict[int, Session] = {}
        for place, (session, answer) in enumerate(zip(sessions, outcomes, strict=True)):
            if session.session_id in refused:
                others[place] = session
            elif isinstance(answer, InvalidInput):
                refused.add(session.session_id)
        answers = self.register(list(others.values()), now, most)
        for place, answer in zip(others, answers, strict=True):
            outcomes[place] = answer
        return outcomes

    def _missing(self, sessions: Sequence[Session], documents: Sequence[Document]) -> Usage:
        """Return what the project does not hold of sessions that are posted."""
        known = self._sessions.find({session.session_id for session in sessions})
        again = [session for session in sessions if session.session_id in known]
        fresh = self._sessions.fresh(
            [(known[session.session_id], session.events) for session in again]
        )
        new = [session for session in sessions if session.session_id not in known]
        of_new = [one for one in documents if one["session_id"] not in known]
        size = sum(one["size"] for one in of_new)
        return Usage(len(of_new), size + sum(map(size_of_events, fresh)) + _size_of_events(new))

    def _outcomes(
        self,
        sessions: Sequence[Session],
        first: Mapping[str, Session],
        answers: Mapping[str, bool | InvalidInput],
        project: Document,
    ) -> tuple[list[Registered | InvalidInput], int]:
        """Return the answer to each session, and how many bytes of events went to known ones."""
        again = [
            session
            for session in sessions
            if answers[session.session_id] is False
            or (answers[session.session_id] is True and session is not first[session.session_id])
        ]
        known = self._sessions.find({session.session_id for session in again})
        fresh = iter(
            self._sessions.fresh(
                [(known[one.session_id], one.events) for one in again if one.session_id in known]
            )
        )
        outcomes: list[Registered | InvalidInput] = []
        size = 0
        for session in sessions:
            answer = answers[session.session_id]
            if isinstance(answer, InvalidInput):
                outcomes.append(answer)
            elif answer is True and session is first[session.session_id]:
                outcomes.append(_new(session, project))
            elif session.session_id not in known:  # deleted meanwhile, with its batch
                outcomes.append(Registered(False, 0, session, project["batch"], is_late=True))
            else:
                seen = known[session.session_id]
                try:
                    added = self._append(seen, session.events, next(fresh))
                except InvalidInput as error:
                    outcomes.append(error)
                else:
                    known[session.session_id] = added.document
                    size += added.size
                    outcomes.append(_known(added, project.get("batch")))
        return outcomes, size

    def _append(
        self,
        seen: Document,
        events: Sequence[SessionEvent],
        fresh: Sequence[SessionEvent] | None = None,
    ) -> _Added:
        """Add those events that a session does not have. Raises InvalidInput.

        seen: its document. fresh: those that it did not have then.
        """
        while True:
            if fresh is None:
                (fresh,) = self._sessions.fresh([(seen, events)])
            if not fresh:
                return _Added(seen, 0, 0)
            changed = self._sessions.append(seen, fresh)
            if changed is not None:
                return _Added(changed, len(fresh), size_of_events(fresh))
            again = self._sessions.find([seen["session_id"]])
            if not again:
                return _Added(seen, 0, 0)  # deleted meanwhile, with its batch
            seen, fresh = again[seen["session_id"]], None

    def get(self, session_id: str) -> Session:
        """Return one session with all its events. Raises NotFound."""
        its_id = self._known(session_id)["id"]
        found = self._sessions.read([its_id])
        if its_id not in found:
            raise unknown("session", session_id, ": register it first")
        return session_of(found[its_id])

    def _known(self, session_id: str) -> Document:
        known = self._sessions.find([session_id])
        if session_id not in known:
            raise unknown("session", session_id, ": register it first")
        return known[session_id]

    def append_events(
        self, session_id: str, events: Sequence[SessionEvent], most: Usage | None = None
    ) -> Registered:
        """Add the events whose event_id the session does not have, all of them or none. Raises
        NotFound; TooManyRequests as above."""
        collecting = self._batches.collecting_id()
        seen = self._known(session_id)
        (fresh,) = self._sessions.fresh([(seen, events)])
        reserved = size_of_events(fresh)
        if fresh:
            self._projects.reserve(self._project, Usage(0, reserved), most)
        used = 0
        try:
            added = self._append(seen, events, fresh)
            used = added.size
        finally:
            if used != reserved:
                self._projects.give_back(self._project, Usage(0, reserved - used))
        return _known(added, collecting)

    def mark_irrelevant(self, session_id: str) -> None:
        """Mark a session as one whose results were all wrong; for good. Raises NotFound."""
        if not self._sessions.mark(session_id):
            raise unknown("session", session_id, ": register it first")

    # -- what comes before its session -------------------------------------------------------------

    def keep_early(
        self, feedback: EarlyFeedback, now: datetime, expires_at: datetime, most: int
    ) -> bool:
        """Keep feedback until its session comes, and have it join then; if it has come, at once.

        Events of ids that the session has, or that wait already, are left out. What has expired
        joins no more, and is deleted. False, and nothing kept, where more than `most` events and
        marks of this project would wait.
        """
        if not self._early.add(feedback, now, expires_at, most):
            return False
        # looked up only now: a session that comes from here on finds what waits for it
        if self._sessions.find([feedback.session_id]):
            self._join_early([feedback.session_id], now)
        return True

    def count_early(self, now: datetime) -> int:
        """Return how many events and marks of this project wait for their session."""
        return self._early.count(now)

    def _join_early(self, session_ids: Collection[str], now: datetime) -> dict[str, int]:
        """Have what waits for sessions join those that are stored; return how many events did."""
        waiting = self._early.find(session_ids, now)
        known = self._sessions.find(waiting) if waiting else {}
        joined = {}
        for session_id, seen in known.items():
            if waiting[session_id].is_irrelevant:
                self._sessions.mark(session_id)
            try:
                added = self._append(seen, waiting[session_id].events)
            except InvalidInput as error:
                log.warning("session %r cannot take what came before it: %s", session_id, error)
            else:
                joined[session_id] = added.events
                if added.size:
                    self._projects.reserve(self._project, Usage(0, added.size))
            self._early.drop(waiting[session_id])
        return joined

    # -- batches -----------------------------------------------------------------------------------

    def release(self, release_id: str, now: datetime, batch_id: str | None = None) -> SessionBatch:
        """Release the batch now collecting: nothing joins it afterwards.

        The same release_id gives the same batch again, at any later time, also after a crash in
        mid-release. Raises NotFound when nothing is collecting (no session since the last release),
        and Conflict when another batch than `batch_id` is, if one is named.
        """
        return self._batches.release(release_id, now, batch_id)

    def find_release(self, release_id: str) -> SessionBatch | None:
        """Return the batch that was released under this id, None if none was."""
        return self._batches.find_release(release_id)

    def get_batch(self, batch_id: str) -> SessionBatch:
        """Return a batch, collecting or released. Raises NotFound."""
        return self._batches.get(batch_id)

    def collecting_batch(self) -> SessionBatch | None:
        """Return the batch that `release` would release now, None where it would refuse."""
        return self._batches.collecting()

    def page(self, skip: int = 0, limit: int = 100) -> list[SessionBatch]:
        """Return batches newest first: the one that `collecting_batch` returns, then those that are
        released, by their release."""
        return self._batches.page(skip, limit)

    def add_counts(self, batch_id: str, counts: Mapping[BatchCount, int]) -> None:
        """Add to what is counted of a batch. Raises NotFound."""
        self._batches.add_counts(batch_id, counts)

    def of_range(self, made: TimeRange, last: SessionBatch | None = None) -> list[SessionBatch]:
        """Return the batches that may hold sessions of a time range, in the order of their release;
        what came late, or by a clock that was wrong, is in batches of another time.

        last: where they end, and the last of them even if it still collects; None: with the latest
        that is released. Which they are up to a released one never changes."""
        return self._batches.of_range(made, last)

    def count_clicked(
        self,
        batch_id: str,
        ignored_kinds: Collection[str] = IGNORED_KINDS,
        since: datetime | None = None,
    ) -> int:
        """Return how many sessions of a batch have an event on a shown item, of a kind that is not
        ignored, and are not marked irrelevant. Raises NotFound.

        since: of all batches up to this one, but only those that were made from then on."""
        return self._batches.count_clicked(batch_id, ignored_kinds, since)

    def read(
        self, batch_id: str, after_number: int, limit: int, events_limit: int | None = None
    ) -> list[NumberedSession]:
        """Return up to `limit` sessions numbered above `after_number`, in order; fewer where they
        are large (PAGE_BYTES), but none only where there are none.

        Each carries its first `events_limit` events (all when None). Takes a fixed number of
        queries, whatever `limit` is, but for runs of erased sessions. Raises NotFound for an
        unknown batch.
        """
        documents = self.read_documents(batch_id, after_number, limit, events_limit)
        return [
            NumberedSession(session_of(document), batch_id, number)
            for number, document in documents.items()
        ]

    def read_documents(
        self, batch_id: str, after_number: int, limit: int, events_limit: int | None = None
    ) -> dict[int, Document]:
        """Do as `read` does, and return what is kept of each session, by its number: JSON in which
        times are milliseconds since 1970."""
        return self._batches.read(batch_id, after_number, limit, events_limit)

    def last_number(self, batch_id: str) -> int:
        """Return the number of the last session that has come to a batch, be it erased since.
        Raises NotFound."""
        return self._batches.last_number(batch_id)

    def delete_older(self, keep: int) -> list[str]:
        """Delete this project's released batches but the latest `keep`, their sessions with them.

        Returns the ids. One that was interrupted is completed by the next. What a task that
        has not ended learns from stays. Numbers and ids of the others do not change.
        """
        return self._batches.delete_older(keep)

    def usage(self) -> dict[str, Usage]:
        """Return what each project holds. Deleted batches count no more."""
        return self._projects.usage()


def _size_of_events(sessions: Iterable[Session]) -> int:
    return sum(size_of_events(fresh_events(session.events)) for session in sessions)


def _new(session: Session, project: Document) -> Registered:
    since = project.get("since")
    is_late = since is not None and milliseconds(session.created_at) < since
    return Registered(True, len(fresh_events(session.events)), session, project["batch"], is_late)


def _known(added: _Added, collecting: str | None) -> Registered:
    batch_id = added.document.get("batch")
    is_late = batch_id is not None and batch_id != collecting
    return Registered(
        False, added.events, session_of(added.document), batch_id or collecting or "", is_late
    )
