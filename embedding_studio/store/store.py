"""The store: one object per noun, over one database."""

from typing import Self

from embedding_studio.projects import DEFAULT_PROJECT, check_project
from embedding_studio.store.clickstream import Clickstream
from embedding_studio.store.deliveries import ChampionDeliveries, EndDeliveries
from embedding_studio.store.documents import Documents
from embedding_studio.store.erasure import Erasure
from embedding_studio.store.items import Items
from embedding_studio.store.keys import Keys
from embedding_studio.store.labels import Labels
from embedding_studio.store.models import Models
from embedding_studio.store.schedules import Schedules
from embedding_studio.store.tasks import Tasks
from embedding_studio.store.users import Users
from embedding_studio.store.workers import Workers


class Store:
    """What is kept, as one project sees it. Workers, keys and what is to be told of ended tasks are
    of all projects."""

    def __init__(
        self,
        documents: Documents,
        project: str = DEFAULT_PROJECT,
        clickstream: Clickstream | None = None,
    ) -> None:
        self._documents = documents
        self.project = project
        self.clickstream = clickstream or Clickstream(documents, project)
        self.items = Items(documents, project)
        self.labels = Labels(documents, project)
        self.tasks = Tasks(documents, project)
        self.erasure = Erasure(documents, project)
        self.users = Users(documents, project)
        self.deliveries = EndDeliveries(documents)
        self.champion_deliveries = ChampionDeliveries(documents)
        self.keys = Keys(documents)
        self.models = Models(documents, project)
        self.schedules = Schedules(documents, project)
        self.workers = Workers(documents)

    def in_project(self, project: str) -> Self:
        """Return this store as another project sees it. Raises InvalidInput for no project's id.

        It is cheap, and shares the connections: closing is left to whoever opened the store."""
        if project == self.project:
            return self
        clickstream = self.clickstream.in_project(check_project(project))
        return type(self)(self._documents, project, clickstream)

    def ping(self) -> None:
        """Write a little. Raises StoreUnavailable if the database does not answer or takes no
        writes."""
        self._documents.ping()

    def close(self) -> None:
        """Release connections; the store is of no use afterwards."""
        self._documents.close()
