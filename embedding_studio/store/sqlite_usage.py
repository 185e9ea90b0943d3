"""What projects hold, in SQLite: counted in the transaction that changes it."""

from collections import Counter

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy import Connection

from embedding_studio.clickstream import Usage
from embedding_studio.store.sqlite_file import batch_rows, event_rows, session_rows, usage_rows
from embedding_studio.store.usage import SAMPLE, ensure_within

USAGE = TypeAdapter(Usage)


class Additions:
    """What one transaction adds to a project. batches: of sessions, by their keys."""

    def __init__(self, connection: Connection, project: str) -> None:
        self.connection = connection
        self.batches: dict[str, str] = {}
        self._project = project
        self._used = usage_of(connection, project)
        self._sessions = 0
        self._bytes: Counter[str] = Counter()

    def count(self, key: str, added: Usage) -> None:
        """Count what is added to the batch of a session."""
        self._sessions += added.sessions
        self._bytes[self.batches[key]] += added.bytes

    def settle(self, most: Usage | None) -> None:
        """Keep what was counted. Raises TooManyRequests, to end the transaction, if it is too
        much."""
        added = Usage(self._sessions, self._bytes.total())
        if added == Usage():
            return
        ensure_within(self._project, self._used, added, most)
        change_usage(self.connection, self._project, added)
        for batch_id, size in self._bytes.items():
            of_batch = batch_rows.c.batch_id == batch_id
            change = sa.update(batch_rows).where(of_batch)
            self.connection.execute(change.values(bytes=batch_rows.c.bytes + size))


def change_usage(connection: Connection, project: str, added: Usage) -> None:
    connection.execute(
        sa.update(usage_rows)
        .where(usage_rows.c.project == project)
        .values(
            sessions=usage_rows.c.sessions + added.sessions, bytes=usage_rows.c.bytes + added.bytes
        )
    )


def usage_of(connection: Connection, project: str) -> Usage:
    """Return what a project holds; estimated once for what came before it was counted."""
    of_project = sa.select(usage_rows).where(usage_rows.c.project == project)
    row = connection.execute(of_project).one_or_none()
    if row is not None:
        return USAGE.validate_python(row._asdict())
    return _begin_to_count(connection, project)


def _begin_to_count(connection: Connection, project: str) -> Usage:
    of_project = batch_rows.c.project == project
    sessions = sa.select(sa.func.sum(batch_rows.c.session_count)).where(of_project)
    count = connection.scalar(sessions) or 0
    each = _mean_size(connection, project) if count else 0
    estimated = Usage(count, count * each)
    connection.execute(
        sa.update(batch_rows).where(of_project).values(bytes=batch_rows.c.session_count * each)
    )
    connection.execute(
        sa.insert(usage_rows).values(project=project, **USAGE.dump_python(estimated))
    )
    return estimated


def document_size(table: sa.Table) -> sa.ColumnElement[int]:
    """Return the bytes of a row's document: JSON is kept with nothing but ASCII in it."""
    return sa.func.length(table.c.document)


def _mean_size(connection: Connection, project: str) -> int:
    """Return how large the latest sessions are, a few of them, with their events."""
    newest = (
        sa.select(batch_rows.c.batch_id)
        .where(batch_rows.c.project == project, batch_rows.c.session_count > 0)
        .order_by(batch_rows.c.created_at.desc())
        .limit(1)
    ).scalar_subquery()
    latest = (
        sa.select(session_rows.c.session_id, document_size(session_rows).label("size"))
        .where(session_rows.c.batch_id == newest)
        .order_by(session_rows.c.number.desc())
        .limit(SAMPLE)
    ).subquery()
    of_latest = event_rows.c.session_id.in_(sa.select(latest.c.session_id))
    of_events = sa.select(sa.func.sum(document_size(event_rows))).where(of_latest)
    count, size = connection.execute(sa.select(sa.func.count(), sa.func.sum(latest.c.size))).one()
    return (size + (connection.scalar(of_events) or 0)) // count if count else 0
