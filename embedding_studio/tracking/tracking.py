"""All of MLflow in one object: the ledger of iterations and runs, the models, the registry."""

from collections.abc import Callable

from embedding_studio.tracking.client import Client
from embedding_studio.tracking.iterations import Iterations
from embedding_studio.tracking.leftovers import Leftovers
from embedding_studio.tracking.models import Models
from embedding_studio.tracking.registry import Registry
from embedding_studio.tracking.runs import Runs


class Tracking:
    """One MLflow server or local database, by what it holds."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.models = Models(client)
        self.registry = Registry(client, self.models)
        self.runs = Runs(client, self.models)
        self.iterations = Iterations(client, self.runs, self.models, self.registry)
        self.leftovers = Leftovers(client, self.models, self.registry)
        self.is_outage, self.ping, self.settle = client.is_outage, client.ping, client.settle

    def guarded(self, check: Callable[[], None]) -> "Tracking":
        """Return the same place, asking `check` before every write: what it raises prevents it.

        So a worker that slept past its lease changes nothing when it wakes up."""
        return Tracking(self.client.guarded(check))
