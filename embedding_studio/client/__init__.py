"""The HTTP API from Python: what a search product's backend calls, and what the demo calls."""

from embedding_studio.client.clickstream import ClickstreamCalls
from embedding_studio.client.imports import ImportCalls
from embedding_studio.client.items import ItemCalls
from embedding_studio.client.labels import LabelCalls
from embedding_studio.client.methods import MethodCalls
from embedding_studio.client.models import ModelCalls
from embedding_studio.client.schedules import ScheduleCalls
from embedding_studio.client.system import SystemCalls
from embedding_studio.client.tasks import TaskCalls
from embedding_studio.client.users import UserCalls

__all__ = ["EmbeddingStudioClient"]


class EmbeddingStudioClient(
    ClickstreamCalls,
    ItemCalls,
    LabelCalls,
    UserCalls,
    ImportCalls,
    TaskCalls,
    ScheduleCalls,
    MethodCalls,
    ModelCalls,
    SystemCalls,
):
    """Calls one API. Every call may be repeated, so timeouts, lost connections and 5xx are retried
    with growing pauses, and 429 after the pause that the server asks for; another 4xx never is, and
    raises the matching error with the server's words. What such a call gives up on is
    StoreUnavailable."""
