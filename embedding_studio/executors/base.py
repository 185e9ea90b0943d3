"""What every executor promises. `tests/contracts/test_executor.py` holds each sentence below."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

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


@dataclass(frozen=True, slots=True)
class Resources:
    """What one job needs."""

    #: cores; None for an even share of them
    cpus: float | None = None
    #: devices, or a share of one, wherever there are any
    gpus: float = 0


EVEN_SHARE = Resources()


class Job(ABC, Generic[Result]):
    """A picklable piece of work: a dataclass.

    Some of its fields hold paths on the machine that submits it. A place that does not share that
    machine's disk brings these files there and back; fields that are dataclasses with `reads` of
    their own are brought too."""

    #: fields with a file or folder, or several, which nobody changes once the job is submitted
    reads: ClassVar[tuple[str, ...]] = ()
    #: fields with a folder that the job makes
    writes: ClassVar[tuple[str, ...]] = ()
    #: what it does, as the subject of a sentence
    doing: ClassVar[str] = "a job"

    @abstractmethod
    def __call__(self, report: Reporter) -> Result: ...


def relocated(job: Any, read: Callable[[Path], Path], write: Callable[[Path], Path]) -> Any:
    """Return a job with its paths replaced: reads by `read`, writes by `write`."""
    changes: dict[str, Any] = {}
    for field in fields(job):
        value = getattr(job, field.name)
        if field.name in getattr(job, "reads", ()):
            changes[field.name] = (
                read(value) if isinstance(value, Path) else tuple(map(read, value))
            )
        elif field.name in getattr(job, "writes", ()):
            changes[field.name] = write(value)
        elif is_dataclass(value) and hasattr(value, "reads"):
            changes[field.name] = relocated(value, read, write)
    return replace(job, **changes)


class Executor(ABC):
    """Runs jobs somewhere."""

    @abstractmethod
    def slots(self, needs: Resources) -> int:
        """Return how many jobs of such needs run at a time, by now: at least 1.

        Raises ExecutorUnavailable."""

    @abstractmethod
    def submit(
        self,
        job: Job[Result],
        on_report: Callable[[Report], Verdict],
        needs: Resources = EVEN_SHARE,
        output: Path | None = None,
    ) -> "Future[Result]":
        """Start a job; the future holds its result, or the exception it raised.

        `on_report` is called in this process, one call at a time per job, for each report of the
        job, in order; its answer reaches the job. What it raises cancels the job and becomes the
        future's exception. A job whose process dies gives TrialCrashed with the exit
        status. An exception of the job carries its remote traceback as its cause. A job whose
        machine is lost begins anew on another: steps that it had reported are not reported again.
        A job sees no GPU but its own. The future, or submit itself, raises ExecutorUnavailable
        when the place where jobs run is out of order.

        The file `output` is made before the future is done, with the beginning and the end of what
        the job's process printed; there is none if it printed nothing. A job in the caller's own
        process prints where the caller does. Processes that a job started end with it."""

    @abstractmethod
    def kill(self, future: "Future[Result]") -> None:
        """End a running job now: its future gets TrialCanceled. Finished jobs stay as they are.

        A job in the caller's own thread cannot be ended: it heeds the answers to its reports."""

    def ping(self) -> None:  # noqa: B027 - what runs on this machine always answers
        """Return if jobs can be submitted, else raise ExecutorUnavailable."""

    @abstractmethod
    def close(self) -> None:
        """Kill what runs and release every resource."""
