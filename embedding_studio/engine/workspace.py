"""The folders of an attempt, and the jobs that work in them."""

import itertools
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, TypeVar

from embedding_studio.deletion import remove_tree
from embedding_studio.engine.failures import during
from embedding_studio.engine.house import House
from embedding_studio.engine.jobs import MethodRef
from embedding_studio.engine.lease import POLL_SECONDS, Lease
from embedding_studio.errors import MethodError
from embedding_studio.executors.base import Job, Resources, Verdict
from embedding_studio.methods import AnyMethod
from embedding_studio.tasks import FineTuningTask
from embedding_studio.threads import in_own_thread

Result = TypeVar("Result")


class Workspace:
    """A folder that one attempt has for itself, and the jobs that read and write in it.

    What waits for a job asks the lease again and again, and ends the job when the attempt must end.
    """

    def __init__(self, house: House, task: FineTuningTask, lease: Lease, method: AnyMethod) -> None:
        self._house = house
        self._lease = lease
        self.method = MethodRef.to(method, house.settings.plugins_folder)
        self.needs = Resources(method.num_cpus, method.num_gpus)
        self.folder = house.settings.work_folder / f"{task.id}-{task.attempt}"
        #: the model that the iteration starts from
        self.start = self.folder / "start"
        #: the champion, where that is another one: the best model must be better than it
        self.champion = self.folder / "champion"
        #: what the method prepared for its trials
        self.data = self.folder / "data"
        #: the sessions of the batch, as they were when the data was prepared
        self.snapshot = self.folder / "snapshot"
        #: the labels, as they were then
        self.labels = self.folder / "labels"
        #: what the method prepared of the labels that judge, a folder each
        self.judges = self.folder / "judges"
        #: the best model so far
        self.best = self.folder / "best"
        #: what the jobs that are no trials printed, a file each
        self.outputs = self.folder / "output"
        self._numbers = itertools.count(1)
        self._submitted: dict[Future[Any], tuple[str, Path]] = {}

    def slots(self) -> int:
        """Return how many trials may be at work at a time."""
        return self._house.executor.slots(self.needs)

    def run(self, job: Job[Result], meanwhile: Callable[[], None] = lambda: None) -> Result:
        """Run one job on the executor; meanwhile: as `first_done` has it. Raises as `result_of`."""
        self._lease.check_stop()
        return self.result_of(self.submit(job), meanwhile)

    def run_all(self, jobs: Sequence[Job[Result]]) -> list[Result]:
        """Run jobs side by side, as many at a time as there is room for. Raises as `run`."""
        begun = list[Future[Result]]()
        try:
            for job in jobs:  # those wait in the executor that it has no room for
                self._lease.check_stop()
                begun.append(self.submit(job))
            return [self.result_of(future) for future in begun]
        except BaseException:
            self.kill(begun)
            raise

    def submit(self, job: Job[Result]) -> "Future[Result]":
        """Start a job whose reports, if it makes any, change nothing."""
        output = self.outputs / f"{next(self._numbers)}-{job.doing.replace(' ', '-')}.txt"
        go_on = Verdict.CONTINUE
        future = self._house.executor.submit(job, lambda _: go_on, self.needs, output)
        self._submitted[future] = (job.doing, output)
        return future

    def result_of(
        self, future: "Future[Result]", meanwhile: Callable[[], None] = lambda: None
    ) -> Result:
        """Return what a job gives or raise what it raised, ending it when the attempt must end.

        Raises MethodError when the job takes longer than ES_MAX_JOB_MINUTES."""
        doing, output = self._submitted.pop(future)
        with during(doing, output):
            try:
                self.first_done([future], self._ending(meanwhile, self._lease.check_stop))
            except BaseException:
                self.kill([future])
                raise
            return future.result()

    def call(
        self, doing: str, function: Callable[[], Result], meanwhile: Callable[[], None]
    ) -> Result:
        """Return what a function of the plugin gives in this process, in a thread that is left to
        itself when it hangs. Raises as `result_of`."""
        future = in_own_thread(function)
        with during(doing):
            self.first_done([future], self._ending(meanwhile))
            return future.result()

    def _ending(self, *meanwhile: Callable[[], None]) -> Callable[[], None]:
        """Return what is called again and again while a step goes on, to end it when it is due."""
        minutes = self._house.settings.max_job_minutes
        deadline = time.monotonic() + minutes * 60

        def end_if_due() -> None:
            for look in meanwhile:
                look()
            if time.monotonic() >= deadline:
                raise MethodError(
                    f"still going on after {minutes:g} minutes, it was ended: does the method wait "
                    "for something? If it needs longer, raise ES_MAX_JOB_MINUTES"
                )

        return end_if_due

    def first_done(
        self, running: Collection[Future[Any]], meanwhile: Callable[[], None]
    ) -> set[Future[Any]]:
        """Wait for the first of some jobs, asking the lease and calling `meanwhile` again and
        again."""
        while True:
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            self._lease.check()
            if done:
                return done
            meanwhile()

    def kill(self, running: Collection[Future[Any]]) -> None:
        """End some jobs, and return when they have ended."""
        for future in running:
            self._house.executor.kill(future)
        wait(running)

    def close(self) -> None:
        """End the jobs that nobody waits for any more, and remove the folder."""
        self.kill(self._submitted)
        remove_tree(self.folder, ignore_errors=True)
