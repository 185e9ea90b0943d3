"""What came before its session, in SQLite: a row for each event and each mark."""

import json
import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy import Column, Connection

from embedding_studio.clickstream import SessionEvent
from embedding_studio.store.base import EarlyFeedback
from embedding_studio.store.sqlite_file import early_rows

EVENT = TypeAdapter(SessionEvent)
MARK = ""  # no event has this id
log = logging.getLogger(__name__)


def is_one_of(column: Column[str], ids: Iterable[str]) -> sa.ColumnElement[bool]:
    """As IN, but one parameter holds all ids: SQLite limits the number of parameters."""
    values = sa.func.json_each(json.dumps(list(ids))).table_valued("value")
    return column.in_(sa.select(values.c.value))


def add_early(
    connection: Connection,
    project: str,
    key: str,
    feedback: EarlyFeedback,
    now: datetime,
    expires_at: datetime,
    most: int,
) -> bool:
    """Keep feedback of a session that has not come; False where more than `most` would wait."""
    of_project = early_rows.c.project == project
    is_over = sa.and_(of_project, early_rows.c.expires_at <= now)
    if expired := connection.execute(sa.delete(early_rows).where(is_over)).rowcount:
        log.warning("%d events expired: their sessions did not come", expired)
    waiting = sa.select(early_rows.c.event_id).where(early_rows.c.session_id == key)
    there = set(connection.scalars(waiting))
    by_id: dict[str, Any] = {
        event.event_id: EVENT.dump_python(event, mode="json", exclude={"weight"})
        for event in feedback.events
    }
    if feedback.is_irrelevant:
        by_id[MARK] = None
    shared = {"project": project, "session_id": key, "expires_at": expires_at}
    rows = [
        {**shared, "event_id": event_id, "document": document}
        for event_id, document in by_id.items()
        if event_id not in there
    ]
    if rows and count_early(connection, project, now) + len(rows) > most:
        return False
    if rows:
        connection.execute(sa.insert(early_rows), rows)
    return True


def count_early(connection: Connection, project: str, now: datetime) -> int:
    waiting = sa.and_(early_rows.c.project == project, early_rows.c.expires_at > now)
    return connection.scalar(sa.select(sa.func.count()).select_from(early_rows).where(waiting)) or 0


def take_early(
    connection: Connection, keys: Iterable[str], now: datetime
) -> tuple[dict[str, list[SessionEvent]], list[str]]:
    """Remove what waits for sessions, and return their events and the keys that were marked."""
    taken = (
        sa.delete(early_rows).where(is_one_of(early_rows.c.session_id, keys)).returning(early_rows)
    )
    rows = [row for row in connection.execute(taken) if row.expires_at > now]
    events: dict[str, list[SessionEvent]] = {}
    for row in sorted(rows, key=lambda row: int(row.arrival)):
        if row.event_id != MARK:
            events.setdefault(row.session_id, []).append(EVENT.validate_python(row.document))
    return events, [row.session_id for row in rows if row.event_id == MARK]
