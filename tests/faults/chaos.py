"""Dice that break what works: shared by the tests of random faults."""

import os
import random
import signal
import sys
import time

from embedding_studio.errors import StoreUnavailable
from embedding_studio.tasks import FineTuningTask, TaskStatus
from tests.faults.harness import WorkerProcess, Yard
from tests.faults.points import Fault
from tests.faults.test_crashes import CRASHES

SEED = int(os.environ.get("ES_FAULT_SEED") or time.time_ns() % 1_000_000)


class Chaos:
    """A yard, and the dice that choose what befalls its workers.

    executors: of its workers. actions: what a worker may do to itself at a step of an iteration.
    """

    executors: tuple[str, ...] = ("inline", "process:1")
    actions: tuple[str, ...] = ("kill", "kill_all", "kill_trials", "stop")

    def __init__(self, yard: Yard, dice: random.Random) -> None:
        self.yard = yard
        self.dice = dice
        self.told: list[str] = []

    def tell(self, what: str) -> None:
        self.told.append(what)
        sys.stdout.write(f"    {what}\n")
        sys.stdout.flush()

    def start_worker(self) -> WorkerProcess:
        """Start a worker; every second one has a fault at some step of its own."""
        executor = self.dice.choice(self.executors)
        fault = None
        if self.dice.random() < 0.5:
            point = self.dice.choice(CRASHES)
            action = self.dice.choice(self.actions)
            nth = self.dice.randint(1, 6)
            fault = Fault(point.function, self.dice.choice(["before", "after"]), nth, action)
        self.tell(f"a worker, {executor}, {fault or 'no fault'}")
        return self.yard.start_worker(fault, executor=executor)

    def start_sweeper(self) -> None:
        """A worker that starts sweeps what the dead left; this one has nothing else to do."""
        self.yard.wait_until_ready(self.yard.start_worker())
        self.yard.drain()
        self.yard.workers.clear()

    def alive(self) -> list[WorkerProcess]:
        """The workers that are neither dead nor frozen."""
        return [one for one in self.yard.workers if one.exit_code() is None and not one.is_frozen()]

    def wake_all(self) -> None:
        self.tell("SIGCONT to all")
        for worker in self.yard.workers:
            worker.send(signal.SIGCONT)

    def are_done(self, tasks: list[FineTuningTask]) -> bool:
        try:
            return all(self.yard.now(task).status is TaskStatus.DONE for task in tasks)
        except StoreUnavailable:  # it has just been broken, and may take a while
            return False
