"""Calls for fine-tuning methods."""

from embedding_studio.client.connection import Connection
from embedding_studio.wire.methods import MethodList


class MethodCalls(Connection):
    """What tells of the methods that there are."""

    def list_methods(self) -> MethodList:
        """Return the methods that a task may name, as the workers say that live."""
        return self._get(MethodList, "/fine-tuning/methods")
