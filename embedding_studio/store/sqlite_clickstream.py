"""Sessions and their batches in SQLite."""

import json
import secrets
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError
from sqlalchemy import Connection

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
from embedding_studio.errors import InvalidInput
from embedding_studio.store.base import (
    EVENTS_BYTES,
    PAGE_BYTES,
    EarlyFeedback,
    Registered,
    cannot_release,
    unknown,
)
from embedding_studio.store.sqlite_early import (
    EVENT,
    add_early,
    count_early,
    is_one_of,
    take_early,
)
from embedding_studio.store.sqlite_file import (
    IS_COLLECTING,
    SqliteFile,
    batch_rows,
    event_rows,
    is_shown,
    session_key,
    session_rows,
    task_rows,
    usage_rows,
)
from embedding_studio.store.sqlite_usage import Additions, change_usage, document_size
from embedding_studio.store.usage import size_of, size_of_events
from embedding_studio.tasks import TERMINAL

BATCH = TypeAdapter(SessionBatch)
SESSION = TypeAdapter(Session)


class SqliteClickstream(SqliteFile):
    def _key(self, session_id: str) -> str:
        return session_key(self.project, session_id)

    def register_sessions(
        self, sessions: Sequence[Session], now: datetime, most: Usage | None = None
    ) -> list[Registered | InvalidInput]:
        keys = [self._key(session.session_id) for session in sessions]
        refused = [_refusal(session) for session in sessions]
        posted = [
            (key, session)
            for key, session, refusal in zip(keys, sessions, refused, strict=True)
            if refusal is None
        ]
        with self._writing() as connection:
            known = _known(connection, [key for key, _ in posted])
            new: dict[str, Session] = {}
            for key, session in posted:
                if key not in known:
                    new.setdefault(key, session)
            additions = Additions(connection, self.project)
            placed = _add_sessions(additions, self.project, new, now) if new else {}
            for key, answer in {**known, **placed}.items():
                additions.batches[key] = answer.stored.batch_id
            added = _add_events(additions, [(key, session.events) for key, session in posted])
            joined = _join_early(additions, [key for key, _ in posted], now)
            additions.settle(most)
        answers: list[Registered | InvalidInput] = []
        for (key, session), new_events in zip(posted, added, strict=True):
            if new_events is None:
                answers.append(_overfull(session.session_id))
                continue
            answer = replace(placed.get(key) or known[key], new_events=new_events)
            answers.append(replace(answer, early_events=joined.pop(key, 0)))
            if key in placed:  # if it is posted a second time, it is known
                known[key] = replace(placed.pop(key), is_new=False, is_late=False)
        in_order = iter(answers)
        return [next(in_order) if refusal is None else refusal for refusal in refused]

    def keep_early(
        self, feedback: EarlyFeedback, now: datetime, expires_at: datetime, most: int
    ) -> bool:
        key = self._key(feedback.session_id)
        with self._writing() as connection:
            known = _known(connection, [key]).get(key)
            if known is None:
                return add_early(connection, self.project, key, feedback, now, expires_at, most)
            _add_to_known(connection, self.project, key, known, feedback.events, None)
            if feedback.is_irrelevant:
                _mark(connection, [key])
            return True

    def count_early(self, now: datetime) -> int:
        with self._reading() as connection:
            return count_early(connection, self.project, now)

    def get_session(self, session_id: str) -> NumberedSession:
        with self._reading() as connection:
            found = _read_sessions(
                connection,
                sa.select(session_rows).where(session_rows.c.session_id == self._key(session_id)),
            )
        if not found:
            raise unknown("session", session_id, ": register it first")
        return found[0]

    def append_events(
        self, session_id: str, events: Sequence[SessionEvent], most: Usage | None = None
    ) -> Registered:
        with self._writing() as connection:
            key = self._key(session_id)
            known = _known(connection, [key]).get(key)
            if known is None:
                raise unknown("session", session_id, ": register it first")
            return _add_to_known(connection, self.project, key, known, events, most)

    def usage(self) -> dict[str, Usage]:
        with self._reading() as connection:
            rows = connection.execute(sa.select(usage_rows)).all()
        return {row.project: Usage(row.sessions, row.bytes) for row in rows}

    def mark_irrelevant(self, session_id: str) -> None:
        with self._writing() as connection:
            if not _mark(connection, [self._key(session_id)]):
                raise unknown("session", session_id, ": register it first")

    def release_batch(
        self, release_id: str, now: datetime, batch_id: str | None = None
    ) -> SessionBatch:
        with self._writing() as connection:
            released = _find_batch(connection, self.project, batch_rows.c.release_id == release_id)
            if released is not None:
                return released
            collecting = _find_batch(connection, self.project, IS_COLLECTING)
            if collecting is None or batch_id not in (None, collecting.batch_id):
                named = _get_batch(connection, self.project, batch_id) if batch_id else None
                raise cannot_release(named)
            row = connection.execute(
                sa.update(batch_rows)
                .where(batch_rows.c.batch_id == collecting.batch_id)
                .values(status=BatchStatus.RELEASED, release_id=release_id, released_at=now)
                .returning(batch_rows)
            ).one()
            return BATCH.validate_python(row._asdict())

    def find_release(self, release_id: str) -> SessionBatch | None:
        with self._reading() as connection:
            return _find_batch(connection, self.project, batch_rows.c.release_id == release_id)

    def get_batch(self, batch_id: str) -> SessionBatch:
        with self._reading() as connection:
            return _get_batch(connection, self.project, batch_id)

    def collecting_batch(self) -> SessionBatch | None:
        with self._reading() as connection:
            return _find_batch(connection, self.project, IS_COLLECTING)

    def add_counts(self, batch_id: str, counts: Mapping[BatchCount, int]) -> None:
        with self._writing() as connection:
            there = _get_batch(connection, self.project, batch_id).counts
            sums = {name: there.get(name, 0) + count for name, count in counts.items()}
            which = batch_rows.c.batch_id == batch_id
            connection.execute(sa.update(batch_rows).where(which).values(counts={**there, **sums}))

    def count_clicked_sessions(
        self, batch_id: str, ignored_kinds: Collection[str] = IGNORED_KINDS
    ) -> int:
        is_clicked = sa.exists().where(
            event_rows.c.session_id == session_rows.c.session_id,
            event_rows.c.shown_kind.is_not(None),
            event_rows.c.shown_kind.not_in(sorted(ignored_kinds)),
        )
        counted = (
            sa.select(sa.func.count())
            .select_from(session_rows)
            .where(session_rows.c.batch_id == batch_id)
            .where(session_rows.c.is_irrelevant.is_(False), is_clicked)
        )
        with self._reading() as connection:
            _get_batch(connection, self.project, batch_id)
            return connection.scalar(counted) or 0

    def delete_older_batches(self, keep: int) -> list[str]:
        of_project = batch_rows.c.project == self.project
        needed = sa.select(task_rows.c.batch_id).where(
            task_rows.c.batch_id.is_not(None), task_rows.c.status.not_in(sorted(TERMINAL))
        )
        released = (
            sa.select(batch_rows.c.batch_id, batch_rows.c.batch_id.in_(needed).label("is_needed"))
            .where(of_project, batch_rows.c.status == BatchStatus.RELEASED)
            .order_by(batch_rows.c.released_at.desc(), batch_rows.c.created_at.desc())
            .offset(keep)
        )
        with self._writing() as connection:
            older = [row.batch_id for row in connection.execute(released) if not row.is_needed]
            sessions = sa.select(session_rows.c.session_id).where(
                is_one_of(session_rows.c.batch_id, older)
            )
            connection.execute(sa.delete(event_rows).where(event_rows.c.session_id.in_(sessions)))
            held = sa.select(batch_rows.c.session_count, batch_rows.c.bytes)
            for batch in connection.execute(held.where(is_one_of(batch_rows.c.batch_id, older))):
                change_usage(connection, self.project, Usage(-batch.session_count, -batch.bytes))
            for table in (session_rows, batch_rows):
                connection.execute(sa.delete(table).where(is_one_of(table.c.batch_id, older)))
        return older

    def read_batch(
        self, batch_id: str, after_number: int, limit: int, events_limit: int | None = None
    ) -> list[NumberedSession]:
        of_session = event_rows.c.session_id == session_rows.c.session_id
        events = (
            sa.select(sa.func.total(document_size(event_rows))).where(of_session).scalar_subquery()
        )
        sizes = (
            sa.select(session_rows.c.number, (document_size(session_rows) + events).label("size"))
            .where(session_rows.c.batch_id == batch_id, session_rows.c.number > after_number)
            .order_by(session_rows.c.number)
            .limit(limit)
        )
        with self._reading() as connection:
            _get_batch(connection, self.project, batch_id)
            last = _end_of_page(connection.execute(sizes), after_number)
            page = sa.select(session_rows).where(
                session_rows.c.batch_id == batch_id,
                session_rows.c.number > after_number,
                session_rows.c.number <= last,
            )
            return _read_sessions(connection, page.order_by(session_rows.c.number), events_limit)


def _end_of_page(sizes: Iterable[sa.Row[Any]], after_number: int) -> int:
    """Return the number of the last session that PAGE_BYTES have room for, or of the first."""
    last, total = after_number, 0
    for row in sizes:
        total += row.size
        if last > after_number and total > PAGE_BYTES:
            break
        last = row.number
    return last


def _refusal(session: Session) -> InvalidInput | None:
    """Return why no row can hold the session, if none can."""
    if "\0" in session.session_id:
        return InvalidInput(f"session {session.session_id!r}: SQLite cannot look up a NUL in an id")
    try:
        for text in (session.session_id, *(event.event_id for event in session.events)):
            text.encode()
        json.dumps(_document(session))
    except (UnicodeEncodeError, OverflowError, PydanticSerializationError) as error:
        return InvalidInput(f"session {session.session_id!r}: SQLite cannot store this: {error}")
    return None


def _overfull(session_id: str) -> InvalidInput:
    return InvalidInput(
        f"session {session_id!r} would have more than {EVENTS_BYTES} bytes of events, the most "
        "that it may: none of these are kept"
    )


def _document(session: Session) -> Any:
    return SESSION.dump_python(session, mode="json", exclude={"events", "is_irrelevant"})


def _known(connection: Connection, keys: Iterable[str]) -> dict[str, Registered]:
    """Return the sessions of those keys that are stored, as if nothing new was posted."""
    found = (
        sa.select(session_rows, batch_rows.c.status)
        .join(batch_rows)
        .where(is_one_of(session_rows.c.session_id, keys))
    )
    return {
        row.session_id: Registered(False, 0, _numbered(row, []), row.status == BatchStatus.RELEASED)
        for row in connection.execute(found)
    }


def _add_sessions(
    additions: Additions, project: str, new: Mapping[str, Session], now: datetime
) -> dict[str, Registered]:
    """Add sessions, by their keys, to the project's collecting batch, opened if there is none."""
    connection = additions.connection
    batch = _find_batch(connection, project, IS_COLLECTING) or _open_batch(connection, project, now)
    placed = {
        key: Registered(
            True,
            0,
            NumberedSession(session, batch.batch_id, number),
            batch.since is not None and session.created_at < batch.since,
        )
        for number, (key, session) in enumerate(new.items(), start=batch.session_count + 1)
    }
    rows = [
        {
            "session_id": key,
            "batch_id": batch.batch_id,
            "number": one.stored.number,
            "is_irrelevant": one.stored.session.is_irrelevant,
            "document": _document(one.stored.session),
        }
        for key, one in placed.items()
    ]
    connection.execute(sa.insert(session_rows), rows)
    connection.execute(
        sa.update(batch_rows)
        .where(batch_rows.c.batch_id == batch.batch_id)
        .values(session_count=batch.session_count + len(rows))
    )
    for key, session in new.items():
        additions.batches[key] = batch.batch_id
        additions.count(key, Usage(1, size_of(session)))
    return placed


def _open_batch(connection: Connection, project: str, now: datetime) -> SessionBatch:
    last = sa.select(sa.func.max(batch_rows.c.released_at)).where(batch_rows.c.project == project)
    since = connection.scalar(last)
    batch = SessionBatch(secrets.token_hex(12), BatchStatus.COLLECTING, now, 0, since=since)
    values = {"project": project, **BATCH.dump_python(batch)}
    connection.execute(sa.insert(batch_rows).values(values))
    return batch


def _add_to_known(
    connection: Connection,
    project: str,
    key: str,
    known: Registered,
    events: Sequence[SessionEvent],
    most: Usage | None,
) -> Registered:
    additions = Additions(connection, project)
    additions.batches[key] = known.stored.batch_id
    (new_events,) = _add_events(additions, [(key, events)])
    additions.settle(most)
    if new_events is None:
        raise _overfull(known.stored.session.session_id)
    return replace(known, new_events=new_events)


def _add_events(
    additions: Additions, posted: Sequence[tuple[str, Sequence[SessionEvent]]]
) -> list[int | None]:
    """Add the unknown events of sessions, by their keys; return how many, in the order given, and
    None where a session has some and would have more than EVENTS_BYTES."""
    connection = additions.connection
    there = sa.select(
        event_rows.c.session_id, event_rows.c.event_id, document_size(event_rows).label("size")
    ).where(is_one_of(event_rows.c.session_id, {key for key, _ in posted}))
    known: defaultdict[str, set[str]] = defaultdict(set)
    sizes: Counter[str] = Counter()
    for row in connection.execute(there):
        known[row.session_id].add(row.event_id)
        sizes[row.session_id] += row.size
    rows: list[dict[str, Any]] = []
    counts: list[int | None] = []
    for key, events in posted:
        new = fresh_events(events, known[key])
        size = size_of_events(new)
        if new and sizes[key] and sizes[key] + size > EVENTS_BYTES:
            counts.append(None)
            continue
        sizes[key] += size
        known[key].update(event.event_id for event in new)
        additions.count(key, Usage(0, size))
        rows += [
            {
                "key": key,
                "id": event.event_id,
                "event": EVENT.dump_python(event, mode="json", exclude={"weight"}),
                "kind": event.kind,
                "object": event.object_id,
            }
            for event in new
        ]
        counts.append(len(new))
    if rows:
        connection.execute(_ADD_EVENT, rows)
    return counts


def _join_early(additions: Additions, keys: Iterable[str], now: datetime) -> dict[str, int]:
    """Have what waits for sessions that are stored join them; return how many events did."""
    connection = additions.connection
    events, marked = take_early(connection, keys, now)
    if marked:
        _mark(connection, marked)
    added = _add_events(additions, list(events.items())) if events else []
    return {key: count or 0 for key, count in zip(events, added, strict=True)}


def _mark(connection: Connection, keys: Iterable[str]) -> int:
    """Mark sessions as irrelevant; return how many there are."""
    of_keys = is_one_of(session_rows.c.session_id, keys)
    return connection.execute(
        sa.update(session_rows).where(of_keys).values(is_irrelevant=True)
    ).rowcount


_ADD_EVENT = sa.insert(event_rows).values(
    session_id=sa.bindparam("key"),
    event_id=sa.bindparam("id"),
    document=sa.bindparam("event", type_=event_rows.c.document.type),
    shown_kind=sa.case(
        (is_shown(sa.bindparam("key"), sa.bindparam("object")), sa.bindparam("kind"))
    ),
)


def _read_sessions(
    connection: Connection, page: sa.Select[Any], events_limit: int | None = None
) -> list[NumberedSession]:
    """Return the sessions that `page` selects, with their first events: two queries."""
    rows = connection.execute(page).all()
    place = sa.func.row_number().over(
        partition_by=event_rows.c.session_id, order_by=event_rows.c.arrival
    )
    placed = (
        sa.select(event_rows, place.label("place"))
        .where(is_one_of(event_rows.c.session_id, [row.session_id for row in rows]))
        .subquery()
    )
    first = sa.select(placed).order_by(placed.c.arrival)
    if events_limit is not None:
        first = first.where(placed.c.place <= events_limit)
    events = defaultdict(list)
    for row in connection.execute(first):
        events[row.session_id].append(row.document)
    return [_numbered(row, events[row.session_id]) for row in rows]


def _numbered(row: sa.Row[Any], events: Sequence[Any]) -> NumberedSession:
    document = {**row.document, "is_irrelevant": row.is_irrelevant, "events": events}
    return NumberedSession(SESSION.validate_python(document), row.batch_id, row.number)


def _find_batch(
    connection: Connection, project: str, condition: sa.ColumnElement[bool]
) -> SessionBatch | None:
    found = sa.select(batch_rows).where(batch_rows.c.project == project, condition)
    row = connection.execute(found).one_or_none()
    return None if row is None else BATCH.validate_python(row._asdict())


def _get_batch(connection: Connection, project: str, batch_id: str) -> SessionBatch:
    batch = _find_batch(connection, project, batch_rows.c.batch_id == batch_id)
    if batch is None:
        raise unknown("batch", batch_id)
    return batch
