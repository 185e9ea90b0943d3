"""What a worker works with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from embedding_studio.clock import Clock
from embedding_studio.executors.base import Executor
from embedding_studio.settings import Settings
from embedding_studio.store import Store

if TYPE_CHECKING:
    from embedding_studio.tracking.tracking import Tracking


@dataclass(frozen=True, slots=True)
class House:
    """What a worker works with; made once, and handed to everything it does."""

    store: Store
    tracking: "Tracking"
    executor: Executor
    settings: Settings
    clock: Clock

    def in_project(self, project: str) -> "House":
        """Return the house with the store as that project sees it."""
        return replace(self, store=self.store.in_project(project))

    def guarded(self, check: Callable[[], None]) -> "House":
        """Return the house with `check` asked before every write to MLflow."""
        return replace(self, tracking=self.tracking.guarded(check))
