"""What every executor promises. `tests/contracts/test_executor.py` holds each sentence below."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias, TypeVar

from embedding_studio.errors import TrialCanceled, TrialPruned

Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True, slots=True)
class Report:
    """Averaged validation scores of a running trial at one step, and what it has cost so far."""

    step: int
    metrics: Mapping[str, float]
    trained_tokens: int = 0


class Verdict(StrEnum):
    """The answer to a report."""

    CONTINUE = "continue"
    STOP = "stop"
    PRUNE = "prune"
    CANCEL = "cancel"


Reporter: TypeAlias = Callable[[Report], Verdict]
"""Called inside a trial; returns CONTINUE or STOP, else raises TrialPruned or TrialCanceled."""


def obey(verdict: Verdict) -> Verdict:
    """Turn a verdict into what a trial's `report` does."""
    if verdict is Verdict.PRUNE:
        raise TrialPruned("the search gave up on this hyperparameter set")
    if verdict is Verdict.CANCEL:
        raise TrialCanceled("the trial was canceled")
    return verdict


class Job(Protocol[Result]):
    """A picklable piece of work."""

    def __call__(self, report: Reporter) -> Result: ...


class Executor(ABC):
    """Runs jobs somewhere, at most `slots` at a time."""

    slots: int

    @abstractmethod
    def submit(self, job: Job[Result], on_report: Callable[[Report], Verdict]) -> "Future[Result]":
        """Start a job; the future holds its result, or the exception it raised.

        on_report is called in this process, one call at a time per job, for each report of the
        job, in order; its answer reaches the job. What on_report raises cancels the job and
        becomes the future's exception. A job whose process dies gives TrialCrashed with the exit
        status. An exception of the job carries its remote traceback as its cause.
        """

    @abstractmethod
    def kill(self, future: "Future[Result]") -> None:
        """End a running job now: its future gets TrialCanceled. Finished jobs stay as they are."""

    @abstractmethod
    def close(self) -> None:
        """Kill what runs and release every resource."""
