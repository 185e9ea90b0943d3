"""Jobs run in the caller's thread: a breakpoint in a plugin stops where one expects it."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from embedding_studio.executors.base import (
    EVEN_SHARE,
    Executor,
    Job,
    Report,
    Resources,
    Verdict,
    obey,
)
from embedding_studio.executors.conversation import portable

Result = TypeVar("Result")


class InlineExecutor(Executor):
    def slots(self, needs: Resources) -> int:
        return 1

    def submit(
        self,
        job: Job[Result],
        on_report: Callable[[Report], Verdict],
        needs: Resources = EVEN_SHARE,
        output: Path | None = None,
    ) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(job(lambda report: obey(on_report(report))))
        except SystemExit as error:
            future.set_exception(portable(error))
        except Exception as error:  # noqa: BLE001 - around a trial: it becomes the future's exception
            future.set_exception(error)
        return future

    def kill(self, future: "Future[Result]") -> None:
        """Nothing to do: `submit` returns finished jobs."""

    def close(self) -> None:
        """Nothing is held."""
