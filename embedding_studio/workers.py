"""The worker as others know it: what it last said of itself, and whether it lives."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from embedding_studio.settings import Settings


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a worker last said of itself; it may be dead by now."""

    worker_id: str
    methods: tuple[str, ...]
    seen_at: datetime
    #: what kept plugins from loading, by file or entry point
    plugin_failures: Mapping[str, str] = field(default_factory=dict)
    #: why the initial model of a method is not there, by the method's name
    missing_models: Mapping[str, str] = field(default_factory=dict)
    #: how far its machine's clock is ahead of the database's, by which it works
    clock_ahead_seconds: float = 0.0
    #: those of the methods that take no labels
    without_labels: tuple[str, ...] = ()


def id_beginning(pid: int) -> str:
    """Return what the id of a worker begins with whose process on this machine has that id."""
    return f"{socket.gethostname()}-{pid}-"


def silence_allowed(settings: Settings) -> timedelta:
    """Return for how long a worker that lives may not have been seen."""
    return timedelta(seconds=max(settings.lease_seconds, 3 * settings.poll_seconds))
