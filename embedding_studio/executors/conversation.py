"""What a job and the process that submitted it tell each other: reports, verdicts, an answer."""

import pickle
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]
from typing import Any

from embedding_studio.errors import MethodError, TrialCrashed
from embedding_studio.executors.base import Report, Reporter, Verdict, obey


@dataclass(frozen=True, slots=True)
class Answer:
    """How a job ended, pickled, so that processes which lack its classes can pass it on."""

    is_result: bool
    #: what the job returned; else what it raised, and the traceback as text
    content: bytes

    @classmethod
    def with_error(cls, error: BaseException) -> "Answer":
        """Return the answer of a job that raised `error`, while it is handled."""
        return cls(False, pickle.dumps((portable(error), traceback.format_exc())))

    @property
    def result(self) -> Any:
        """What the job returned. Raises what it raised, the remote traceback as its cause."""
        if self.is_result:
            return pickle.loads(self.content)
        error, remote_traceback = pickle.loads(self.content)
        raise error from RemoteTraceback(remote_traceback)


def answer_of(
    job: Callable[[Reporter], Any],
    report: Reporter,
    not_its_fault: tuple[type[Exception], ...] = (),
) -> Answer:
    """Run a job; return its answer. Raises what comes from `report` but is `not_its_fault`."""
    try:
        result = job(report)
    except not_its_fault:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is raised again there
        return Answer.with_error(error)
    try:
        return Answer(True, pickle.dumps(result))
    except Exception:  # noqa: BLE001 - an answer that cannot be pickled is described instead
        text = f"the trial's answer cannot be sent between processes: {result!r}"
        return Answer.with_error(MethodError(text))


def portable(error: BaseException) -> BaseException:
    """Return what a job raised if it can be sent between processes, else what describes it."""
    if isinstance(error, SystemExit):
        return TrialCrashed(f"it called sys.exit({error.code!r})")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its class makes of it
        return MethodError(f"{type(error).__name__}: {error}")
    return error


class Conversation(ABC):
    """A running job, as the process that submitted it sees it."""

    @abstractmethod
    def receive(self) -> Report | Answer:
        """Wait for what the job says next. Raises what ended it without an answer."""

    @abstractmethod
    def reply(self, verdict: Verdict) -> None:
        """Answer the last report."""

    def hold(self, on_report: Callable[[Report], Verdict]) -> Any:
        """Answer the job's reports until it ends; return its result or raise its error.

        Raises TrialCanceled, too, for a verdict that cancels: who holds the conversation then ends
        the job, which is not asked to end."""
        while True:
            said = self.receive()
            if isinstance(said, Answer):
                return said.result
            verdict = on_report(said)
            if verdict is Verdict.CANCEL:
                obey(verdict)
            self.reply(verdict)
