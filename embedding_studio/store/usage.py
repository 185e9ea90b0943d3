"""What a project's sessions and tasks take, and when there is room for no more."""

from collections.abc import Iterable

import msgspec

from embedding_studio.clickstream import SessionEvent, Usage
from embedding_studio.errors import TooManyRequests
from embedding_studio.settings import Settings
from embedding_studio.tasks import TaskRequest

PAGE_BYTES = 4 * 1024 * 1024
"""What the sessions of a page come to at most, as the database keeps them, or it is one session."""


def most_of(settings: Settings) -> Usage:
    """Return what a project may hold."""
    return Usage(settings.max_project_sessions, settings.max_project_mb * 1024 * 1024)


def size_of_request(request: TaskRequest) -> int:
    """Return the bytes of a new task: what was asked for is kept twice, as it was and as it is."""
    return 2 * json_size(request)


def size_of_events(events: Iterable[SessionEvent]) -> int:
    """Return the bytes of events."""
    return sum(map(json_size, events))


def json_size(value: object) -> int:
    """Return the bytes of a value as JSON."""
    try:
        return len(msgspec.json.encode(value))
    except (UnicodeEncodeError, TypeError):  # half a surrogate pair, which is no UTF-8
        return len(repr(value))


def ensure_within(project: str, used: Usage, added: Usage, most: Usage | None) -> None:
    """Raise TooManyRequests where a project would hold more than it may; None: it may hold all.

    What adds nothing, such as a post that is repeated, has room.
    """
    if most is None or added == Usage():
        return
    for what, there, new, limit, setting in (
        ("sessions", used.sessions, added.sessions, most.sessions, "ES_MAX_PROJECT_SESSIONS"),
        (
            "bytes of sessions, items, labels and tasks",
            used.bytes,
            added.bytes,
            most.bytes,
            "ES_MAX_PROJECT_MB",
        ),
    ):
        if new and there + new > limit:
            raise TooManyRequests(
                f"project {project!r} holds {there} {what}, and {new} more would be above its "
                f"limit of {limit} ({setting}): nothing of this is kept. Have older batches "
                "deleted once a task has learnt from the latest (ES_KEEP_BATCHES), or raise the "
                "limit"
            )
