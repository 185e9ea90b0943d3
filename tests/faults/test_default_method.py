"""Random kills and freezes of workers at the default method's real work: `make test-faults`.

ES_FAULT_TASKS (1) tasks in each of two houses, at least five faults per task.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corpora import generated_corpus
from benchmarks.iteration import packaged_model
from embedding_studio.clickstream import Session
from embedding_studio.clock import utc_now
from embedding_studio.demo.searchers import Behaviour, simulate_sessions
from embedding_studio.models import MoveKind
from embedding_studio.settings import Settings
from embedding_studio.tasks import TERMINAL, FineTuningTask, TaskEventKind, TaskStatus
from tests.faults.chaos import SEED, Chaos
from tests.faults.harness import Nursery, WorkerProcess, Yard, check_invariants
from tests.iterations import open_bench
from tests.servers import MlflowServer, Secantus
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults]

TASKS = int(os.environ.get("ES_FAULT_TASKS") or 1)
SESSIONS = 6000
FAULTS_PER_TASK = 5
MOST_FAULTS = 8  # then the task is left to end
LONGEST_PAUSES = {
    "prepare": 6.0,
    "baseline": 6.0,
    "search": 15.0,
    "cross-fit": 6.0,
    "promote": 3.0,
    "refit": 3.0,
    "clean up": 1.0,
}
"""How many seconds after a task came to a phase a fault strikes, at most."""
PATIENCE_SECONDS = 60.0  # for a phase to come
TRIALS = 3
LEASE_SECONDS = 3.0
END_SECONDS = 900.0
PLUGIN = Path(__file__).parents[2] / "plugins" / "default_fine_tuning_method.py"
CORPUS_SIZES = 250, 300  # items and queries: trials of seconds
METHOD = "Default Fine Tuning Method"
# clicks that teach nothing: the gate refuses what was learnt from them
NOISE = Behaviour(attraction_relevant=(0.0, 0.3), attraction_irrelevant=(0.0, 0.3))


class Assault(Chaos):
    """Kills and freezes of the workers and their children while they train a real encoder.

    frozen: pids, and when each is to wake. tasks, posted: what was asked for, and for each the
    sessions that it is to learn from.
    """

    executors = ("process:2",)  # where threads are as many as cores, they wait for others
    actions = ("kill", "kill_all", "stop")

    def __init__(self, yard: Yard, dice: random.Random) -> None:
        super().__init__(yard, dice)
        self.frozen: dict[int, float] = {}
        self.noted: set[Path] = set()  # the markers of faults that workers had of their own
        self.counts: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()
        self.tasks: list[FineTuningTask] = []
        self.posted: list[list[Session]] = []
        self.struck_now = 0
        self.killed: Counter[bool] = Counter()  # jobs: trials or not

    @property
    def faults_so_far(self) -> int:
        return self.counts["kills"] + self.counts["freezes"]

    def run(self, tasks: int, faults: int) -> None:
        while len(self.tasks) < tasks or self.faults_so_far < faults:
            self.run_task()
            self.tell(f"after {len(self.tasks)} tasks: {dict(self.counts)} in {dict(self.phases)}")

    def run_task(self) -> None:
        self.told.clear()
        self.struck_now = 0
        self.killed.clear()
        task = self.post_task()
        while not self.are_done([task]):
            self.wait_for_moment(task)
            if self.struck_now < MOST_FAULTS and not self.are_done([task]):
                self.dice.choice(self.faults())(task)
        self.note_armed(task)
        self.wake_all()
        self.frozen.clear()
        self.yard.drain()
        self.yard.workers.clear()
        self.start_sweeper()
        check_invariants(self.yard)
        self.check_nothing_lost_or_doubled()

    def wait_for_moment(self, task: FineTuningTask) -> None:
        """Wait until the task has come to a phase that the dice choose, and a while longer."""
        phase = self.dice.choice(list(LONGEST_PAUSES))
        pause = self.dice.uniform(0.0, LONGEST_PAUSES[phase])
        begin, reached_at = time.monotonic(), None

        def is_now() -> bool:
            nonlocal reached_at
            self.keep_at_work(task)
            now = time.monotonic()
            if reached_at is None and (self.is_at(task, phase) or now - begin > PATIENCE_SECONDS):
                reached_at = now
            return self.are_done([task]) or (reached_at is not None and now - reached_at >= pause)

        wait_until(is_now, END_SECONDS, pause=0.1)

    def keep_at_work(self, task: FineTuningTask) -> None:
        """See to it that somebody can work on the task, which has not failed."""
        now = self.yard.now(task)
        assert now.status not in TERMINAL - {TaskStatus.DONE}, (now.error, self.told)
        self.note_armed(task)
        self.wake_the_rested()
        if not self.alive():
            self.start_worker()

    def is_at(self, task: FineTuningTask, phase: str) -> bool:
        """Return whether a task has come to a phase, or further."""
        phases = list(LONGEST_PAUSES)
        now = self.phase(task)
        return now in phases and phases.index(now) >= phases.index(phase)

    # -- what is asked of the workers --------------------------------------------------------------

    def post_task(self) -> FineTuningTask:
        number = len(self.tasks)
        sessions = list(self.searches(number))
        bench = self.yard.bench
        bench.house.store.clickstream.register(sessions, utc_now())
        task = bench.post_task(METHOD, trials=TRIALS)
        self.tell(f"task {number + 1}: {task.id}, {len(sessions)} sessions")
        self.tasks.append(task)
        self.posted.append(sessions)
        return task

    def searches(self, number: int) -> Iterator[Session]:
        """Searches in a corpus whose words no task before has learnt, by an engine that is often
        wrong; those of each third task are followed by clicks at random."""
        corpus = generated_corpus(*CORPUS_SIZES, seed=number)
        noise = np.random.default_rng(number).normal(size=corpus.relevance.shape)
        scores = 2.0 * corpus.relevance + noise
        yield from simulate_sessions(
            corpus, scores, np.eye(len(corpus.items)), SESSIONS, number, datetime.now(UTC),
            NOISE if number % 3 == 2 else Behaviour(), prefix=f"task-{number}",
        )  # fmt: skip

    # -- what befalls them -------------------------------------------------------------------------

    def faults(self) -> list[Callable[[FineTuningTask], None]]:
        return [
            self.kill_worker,
            self.freeze_worker,
            self.freeze_worker_and_children,
            self.kill_child,
            self.freeze_child,
        ]

    def kill_worker(self, task: FineTuningTask) -> None:
        if victim := self.victim(task):
            self.note("kills", f"SIGKILL to worker {victim.pid}", task)
            victim.send(signal.SIGKILL)

    def freeze_worker(self, task: FineTuningTask) -> None:
        if victim := self.victim(task):
            self.freeze([victim.pid], "worker", task)

    def freeze_worker_and_children(self, task: FineTuningTask) -> None:
        if victim := self.victim(task):
            self.freeze([victim.pid, *victim.trials()], "worker and children", task)

    def freeze_child(self, task: FineTuningTask) -> None:
        if children := self.children(task):
            self.freeze([self.dice.choice(children)], "child", task)

    def kill_child(self, task: FineTuningTask) -> None:
        """Kill a job, as often as a task is to survive that: trials fail with it, and one is to be
        left; any other step is done once more."""
        is_trial = self.phase(task) == "search"
        most = TRIALS - 1 if is_trial else 1
        children = self.children(task)
        if children and self.killed[is_trial] < most:
            self.killed[is_trial] += 1
            self.note("kills", "SIGKILL to a child", task)
            self.send(self.dice.choice(children), signal.SIGKILL)

    def victim(self, task: FineTuningTask) -> WorkerProcess | None:
        """Mostly the worker that has the task."""
        alive = self.alive()
        owner = self.yard.now(task).worker_id or ""
        owners = [one for one in alive if f"-{one.pid}-" in owner]
        return self.dice.choice(owners if owners and self.dice.random() < 0.9 else alive or [None])

    def children(self, task: FineTuningTask) -> list[int]:
        """The jobs of a victim that are not frozen."""
        victim = self.victim(task)
        return [pid for pid in victim.trials() if pid not in self.frozen] if victim else []

    def freeze(self, pids: list[int], whom: str, task: FineTuningTask) -> None:
        self.note("freezes", f"SIGSTOP to {whom} {pids}", task)
        wakes_at = time.monotonic() + self.dice.uniform(LEASE_SECONDS + 0.5, 4 * LEASE_SECONDS)
        for pid in pids:
            self.send(pid, signal.SIGSTOP)
            self.frozen[pid] = wakes_at

    def wake_the_rested(self) -> None:
        for pid in [pid for pid, at in self.frozen.items() if at <= time.monotonic()]:
            del self.frozen[pid]
            self.tell(f"SIGCONT to {pid}")
            self.send(pid, signal.SIGCONT)

    def wake_all(self) -> None:
        super().wake_all()
        for pid in self.frozen:
            self.send(pid, signal.SIGCONT)

    def send(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, number)

    def note_armed(self, task: FineTuningTask) -> None:
        """Count the faults that workers had of their own by now."""
        for worker in self.yard.workers:
            if worker.marker in self.noted or not worker.marker.exists():
                continue
            self.noted.add(worker.marker)
            if worker.fault and worker.fault.action == "stop":
                self.freeze([worker.pid], f"worker, {worker.fault},", task)
            else:
                self.note("kills", f"worker {worker.pid}: {worker.fault}", task)

    def note(self, kind: str, what: str, task: FineTuningTask) -> None:
        self.struck_now += 1
        self.counts[kind] += 1
        self.phases[self.phase(task)] += 1
        self.tell(f"{what} ({self.phase(task)})")

    def phase(self, task: FineTuningTask) -> str:
        now = self.yard.now(task)
        return now.progress.phase if now.progress and now.status is TaskStatus.PROCESSING else "-"

    # -- what must hold ----------------------------------------------------------------------------

    def check_nothing_lost_or_doubled(self) -> None:
        """Each task has one batch with what was posted for it, one iteration and one verdict; each
        promotion is one version, in the store and in MLflow."""
        store, tracking = self.yard.bench.house.store, self.yard.bench.house.tracking
        tasks = [self.yard.now(task) for task in self.tasks]
        assert {one.id for one in store.tasks.page(limit=1000)} == {one.id for one in tasks}
        assert len({task.batch_id for task in tasks}) == len(tasks)
        for task, posted in zip(tasks, self.posted, strict=True):
            assert sorted(map(ids_of, self.sessions_of(task))) == sorted(map(ids_of, posted))
            assert len(tracking.iterations.of_task(task.id)) <= 1
            kinds = Counter(event.kind for event in self.yard.events(task))
            assert kinds[TaskEventKind.BATCH_RELEASED] == 1
            assert kinds[TaskEventKind.PROMOTED] + kinds[TaskEventKind.REFUSED] == 1
            assert kinds[TaskEventKind.DONE] == 1
        promoted = [task for task in tasks if task.promotion and task.promotion.promoted]
        model = store.models.find(METHOD)
        assert model is not None
        moves = [move.kind for move in model.moves]
        assert moves == [MoveKind.INITIAL] + [MoveKind.PROMOTED] * len(promoted), moves
        versions = list(self.yard.bench.mlflow.search_model_versions(f"name = '{METHOD}'"))
        assert len({v.run_id for v in versions}) == len(versions)
        assert {int(v.version) for v in versions} == model.kept_numbers
        self.counts["promotions"] = len(promoted)

    def sessions_of(self, task: FineTuningTask) -> Iterator[Session]:
        assert task.batch_id is not None
        after = 0
        while page := self.yard.bench.house.store.clickstream.read(task.batch_id, after, 1000):
            yield from (numbered.session for numbered in page)
            after = page[-1].number


def ids_of(session: Session) -> tuple[str, ...]:
    """Return a session's id, then those of its events."""
    return session.session_id, *sorted(event.event_id for event in session.events)


@pytest.fixture(params=["local", "served"])
def assault(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Assault]:
    """A house of its own: SQLite and a local MLflow database, or a server for each."""
    with ExitStack() as stack:
        if request.param == "served":
            secantus = stack.enter_context(closing(Secantus(settings.data_folder)))
            server = stack.enter_context(closing(MlflowServer(settings.data_folder)))
            settings = settings.replaced(
                store_url=f"{secantus.url}/assault", mlflow_tracking_uri=server.url
            )
        plugins = settings.data_folder / "plugins"
        plugins.mkdir()
        shutil.copy(PLUGIN, plugins)  # alone: the others' imports take their time
        settings = settings.replaced(
            plugins_folder=plugins, initial_model=str(packaged_model()), poll_seconds=0.1,
            lease_seconds=LEASE_SECONDS, max_expired_leases=1000,
        )  # fmt: skip
        bench = open_bench(settings)
        stack.callback(bench.house.store.close)
        stack.callback(bench.house.executor.close)
        nursery = stack.enter_context(closing(Nursery("sentence_transformers")))
        yard = Yard(bench, nursery, settings)
        stack.callback(yard.close)
        yield Assault(yard, random.Random(f"{SEED} {request.param}"))


@pytest.mark.timeout(0)
def test_kills_and_freezes_cost_the_default_method_nothing(assault: Assault) -> None:
    """Whenever workers and trials die or sleep past the lease, every task of the default method
    ends well, once, with all that was posted for it."""
    sys.stdout.write(f"\nES_FAULT_SEED={SEED} ES_FAULT_TASKS={TASKS}\n")
    assault.run(TASKS, TASKS * FAULTS_PER_TASK)
    sys.stdout.write(f"seed {SEED}: {dict(assault.counts)}, struck in {dict(assault.phases)}\n")
