"""Calls that tell whether everything is there."""

from datetime import datetime

from embedding_studio.client.connection import Connection
from embedding_studio.wire.system import HealthView, Pong


class SystemCalls(Connection):
    """What tells of the API and of what it needs."""

    def ping(self) -> datetime:
        """Return the server's time."""
        return self._get(Pong, "/ping").time

    def health(self) -> HealthView:
        """Return what is there and what is missing; the latter raises nothing."""
        return self._read(HealthView, self._call("GET", "/health", fine=503))
