"""Random faults, from a seed, for as long as asked: `make test-faults`."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.settings import Settings
from embedding_studio.tasks import FineTuningTask, TaskStatus
from tests.faults.chaos import SEED, Chaos
from tests.faults.harness import (
    IMPATIENT,
    QUICK,
    Nursery,
    RemoteYard,
    check_invariants,
)
from tests.faults.proxy import KINDS, Proxy, Trouble
from tests.iterations import open_bench
from tests.servers import MlflowServer, Secantus
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults]

METHODS = ("Toy", "Paced", "Worse", "Counting", "Failing once")
MINUTES = float(os.environ.get("ES_FAULT_MINUTES") or 10)
FAULTS_PER_EPISODE = 6
END_SECONDS = 180.0


class Outages(Chaos):
    """One house on a database server and an MLflow server, which break too."""

    yard: RemoteYard

    def __init__(self, yard: RemoteYard, secantus: Secantus, dice: random.Random) -> None:
        super().__init__(yard, dice)
        self.secantus = secantus

    def episode(self, number: int) -> None:
        self.told.clear()
        tasks = self.post_tasks(number)
        self.start_worker()
        for _ in range(self.dice.randint(1, FAULTS_PER_EPISODE)):
            self.wait_a_little(tasks)
            if self.are_done(tasks):
                break
            self.dice.choice(self.faults())()
            if len(self.alive()) < 1 or self.dice.random() < 0.3:
                self.start_worker()
        self.heal()
        for task in tasks:
            self.yard.wait_for(task, seconds=END_SECONDS)
            done = self.yard.now(task)
            was_crashed = "TrialCrashed" in (done.error or "")  # each of its trials, by us
            assert done.status is TaskStatus.DONE or was_crashed, (done.error, self.told)
        self.yard.drain()
        self.yard.workers.clear()
        self.start_sweeper()
        check_invariants(self.yard)

    def post_tasks(self, number: int) -> list[FineTuningTask]:
        bench = self.yard.bench
        bench.post_sessions(start=1000 * number)
        methods = self.dice.sample(METHODS, self.dice.randint(1, 2))
        trials = self.dice.randint(2, 5)
        batch_id = None
        if len(methods) > 1:
            batch_id = bench.house.store.clickstream.release(
                f"episode {number}", utc_now()
            ).batch_id
        self.tell(f"episode {number}: {methods}, {trials} trials")
        return [bench.post_task(name, trials=trials, batch_id=batch_id) for name in methods]

    def faults(self) -> list[Callable[[], None]]:
        return [
            lambda: self.signal_one(signal.SIGKILL),
            lambda: self.signal_one(signal.SIGSTOP),
            self.wake_all,
            self.drain_one,
            self.kill_a_trial,
            self.kill_the_database,
            self.freeze_the_database,
            self.trouble_mlflow,
            self.trouble_mlflow,
        ]

    def signal_one(self, number: signal.Signals) -> None:
        if alive := self.alive():
            self.tell(f"{number.name} to a worker")
            self.dice.choice(alive).send(number)

    def drain_one(self) -> None:
        if alive := self.alive():
            self.tell("SIGTERM to a worker")
            self.dice.choice(alive).send(signal.SIGTERM)

    def kill_a_trial(self) -> None:
        trials = [pid for worker in self.alive() for pid in worker.trials()]
        if trials:
            self.tell("SIGKILL to a trial")
            try:
                os.kill(self.dice.choice(trials), signal.SIGKILL)
            except ProcessLookupError:
                self.tell("which had ended")

    def kill_the_database(self) -> None:
        self.tell("the database dies")
        self.secantus.kill()
        self.pause()
        self.secantus.restart()

    def freeze_the_database(self) -> None:
        self.tell("the database hangs")
        self.secantus.freeze()
        self.pause()
        self.secantus.thaw()

    def trouble_mlflow(self) -> None:
        kind = self.dice.choice(KINDS)
        share, times = self.dice.choice([(0.1, 20), (0.5, 10), (1.0, 6)])
        verb = self.dice.choice(["", "POST", "PUT", "GET", "DELETE"])
        self.tell(f"MLflow: {kind} {verb or 'anything'}, {share:.0%} of {times}")
        self.yard.proxy.trouble(Trouble(kind, verb, times=times, share=share))

    def pause(self) -> None:
        time.sleep(self.dice.uniform(0.1, 4.0))  # how long a fault lasts is the fault

    def wait_a_little(self, tasks: list[FineTuningTask]) -> None:
        end = time.monotonic() + self.dice.uniform(0.0, 3.0)
        wait_until(lambda: time.monotonic() > end or self.are_done(tasks))

    def heal(self) -> None:
        self.tell("all is mended")
        self.yard.proxy.heal()
        self.secantus.thaw()
        for worker in self.yard.workers:
            worker.send(signal.SIGCONT)
        self.yard.start_worker()


@pytest.fixture
def chaos(settings: Settings, nursery: Nursery, secantus: Secantus) -> Iterator[Outages]:
    server = MlflowServer(settings.data_folder)
    proxy = Proxy(server.url, SEED)
    waits = "serverSelectionTimeoutMS=500&connectTimeoutMS=500&socketTimeoutMS=1000"
    bench = open_bench(
        settings.replaced(mlflow_tracking_uri=server.url, store_url=f"{secantus.url}/chaos?{waits}")
    )
    yard = RemoteYard(
        bench,
        nursery,
        bench.house.settings.replaced(
            **{**QUICK, "lease_seconds": 2.0, "max_expired_leases": 1000},
            mlflow_tracking_uri=proxy.url,
        ),
        variables=IMPATIENT,
        proxy=proxy,
    )
    yield Outages(yard, secantus, random.Random(SEED))
    yard.close()
    proxy.close()
    server.close()
    bench.house.executor.close()
    bench.house.store.close()


@pytest.mark.timeout(0)
def test_random_faults_break_no_promise(chaos: Outages) -> None:
    """Episode after episode: whatever the dice choose, each task ends and the invariants hold."""
    sys.stdout.write(f"\nES_FAULT_SEED={SEED} ES_FAULT_MINUTES={MINUTES:g}\n")
    end = time.monotonic() + MINUTES * 60
    number = 0
    while time.monotonic() < end:
        number += 1
        chaos.episode(number)
    sys.stdout.write(f"{number} episodes, seed {SEED}\n")
