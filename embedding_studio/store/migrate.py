"""Databases in the layout of version 0.1, and how what is in them is brought along.

What is copied is left where it was until all of it is copied; so the command may be interrupted
anywhere and repeated. Nobody else may use the database meanwhile.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from embedding_studio.clickstream import Session, SessionBatch, SessionEvent
from embedding_studio.keys import ApiKey
from embedding_studio.models import RegisteredModel
from embedding_studio.schedules import Schedule
from embedding_studio.tasks import FineTuningTask, TaskEvent, TaskRequest


@dataclass(frozen=True, slots=True)
class FormerTask:
    """A task with its history."""

    task: FineTuningTask
    #: what was asked for, to which a repeated request is compared
    request: TaskRequest
    events: list[TaskEvent]


@dataclass(frozen=True, slots=True)
class FormerBatch:
    """A batch; one in release counts as released."""

    project: str
    batch: SessionBatch


@dataclass(frozen=True, slots=True)
class FormerEarly:
    """An event that waits for its session, or the mark that its results were all wrong."""

    project: str
    session_id: str
    event: SessionEvent | None
    expires_at: datetime


class Former(ABC):
    """What a database in the layout of 0.1 holds."""

    @abstractmethod
    def tasks(self) -> Iterator[FormerTask]:
        """Give all tasks, oldest first."""

    @abstractmethod
    def batches(self) -> Iterator[FormerBatch]:
        """Give the batches of all projects that are not being deleted; of each project's oldest
        first."""

    @abstractmethod
    def sessions(self, batch_id: str) -> Iterator[Session]:
        """Give the sessions of a batch by their numbers."""

    @abstractmethod
    def early(self) -> Iterator[FormerEarly]:
        """Give what waits for its session, oldest first."""

    @abstractmethod
    def api_keys(self) -> Iterator[ApiKey]:
        """Give all API keys, oldest first."""

    @abstractmethod
    def schedules(self) -> Iterator[Schedule]:
        """Give the schedules of all projects, oldest first."""

    @abstractmethod
    def models(self) -> Iterator[RegisteredModel]:
        """Give the registered models of all projects."""

    @abstractmethod
    def retire(self) -> None:
        """Put all of it out of the way: from here on the database is one of the present layout."""
