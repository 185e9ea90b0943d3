"""The life of tasks: random commands to a store and to a model of it, which must agree."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from embedding_studio.errors import Conflict, LeaseLost
from embedding_studio.store import Store
from embedding_studio.tasks import (
    LEGAL_TRANSITIONS,
    OWNED,
    Claim,
    Promotion,
    TaskEventKind,
    TaskRequest,
    TaskStatus,
)
from tests.contracts.store_backends import Backend
from tests.contracts.store_processes import NOW

LEASE_SECONDS = 60.0
MAX_DEATHS = 2
PROMOTION = Promotion(True, "better", "mrr", 0.5, 0.75, 0.25)
STATUS_AFTER = {
    TaskEventKind.CREATED: TaskStatus.PENDING,
    TaskEventKind.CLAIMED: None,  # processing, or stopping still
    TaskEventKind.STOP_REQUESTED: TaskStatus.STOPPING,
    TaskEventKind.RESTARTED: TaskStatus.PENDING,
    TaskEventKind.DONE: TaskStatus.DONE,
    TaskEventKind.STOPPED: TaskStatus.STOPPED,
    TaskEventKind.CANCELED: TaskStatus.CANCELED,
    TaskEventKind.ERROR: TaskStatus.ERROR,
}


@dataclass
class Expected:
    """A task as the model has it. lease_until: in seconds of the machine's clock."""

    status: TaskStatus = TaskStatus.PENDING
    attempt: int = 0
    deaths: int = 0
    lease_until: float | None = None
    has_verdict: bool = False
    fresh_starts: int = 0

    def let_go(self) -> None:
        self.lease_until = None

    def is_claimable(self, now: float) -> bool:
        if self.status is TaskStatus.PENDING:
            return True
        return self.status in OWNED and (self.lease_until is None or self.lease_until <= now)


class TaskMachine(RuleBasedStateMachine):
    backend: Backend

    @initialize()
    def open(self) -> None:
        self.database = self.backend.another()
        self.store: Store = self.database.open()
        self.expected: dict[str, Expected] = {}
        self.claims: list[Claim] = []
        self.seconds = 0.0

    def teardown(self) -> None:
        self.store.close()

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    @property
    def ids(self) -> list[str]:
        return list(self.expected)

    # -- clients -----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.expected) < 3)
    @rule()
    def add(self) -> None:
        self.seconds += 1  # so that their order is known
        task, _ = self.store.tasks.add(TaskRequest("m"), self.now)
        self.expected[task.id] = Expected()

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), action=st.sampled_from(["cancel", "stop", "restart", "restart afresh"]))
    def ask(self, data: st.DataObject, action: str) -> None:
        task_id = data.draw(st.sampled_from(self.ids))
        expected = self.expected[task_id]
        calls: dict[str, tuple[Callable[[], object], Callable[[Expected], bool]]] = {
            "cancel": (lambda: self.store.tasks.cancel(task_id, self.now), self._cancel),
            "stop": (lambda: self.store.tasks.stop(task_id, self.now), self._stop),
            "restart": (lambda: self.store.tasks.restart(task_id, self.now), self._restart),
            "restart afresh": (
                lambda: self.store.tasks.restart(task_id, self.now, fresh=True),
                lambda expected: self._restart(expected, fresh=True),
            ),
        }
        call, on_model = calls[action]
        if on_model(expected):
            call()
        else:
            with pytest.raises(Conflict, match=task_id):
                call()

    def _cancel(self, expected: Expected) -> bool:
        if expected.status is TaskStatus.CANCELED:
            return True
        is_open = expected.status is TaskStatus.PENDING or expected.status in OWNED
        if not is_open or expected.has_verdict:
            return False
        expected.status = TaskStatus.CANCELED
        return True

    def _stop(self, expected: Expected) -> bool:
        if expected.status in (TaskStatus.STOPPING, TaskStatus.STOPPED):
            return True
        has_begun = expected.status is TaskStatus.PROCESSING or (
            expected.status is TaskStatus.PENDING and expected.attempt > 0
        )
        if not has_begun or expected.has_verdict:
            return False
        expected.status = TaskStatus.STOPPING
        return True

    def _restart(self, expected: Expected, fresh: bool = False) -> bool:
        if expected.status is TaskStatus.PENDING:
            return True
        if expected.status not in (TaskStatus.CANCELED, TaskStatus.ERROR, TaskStatus.STOPPED):
            return False
        if expected.lease_until is not None and expected.lease_until > self.seconds:
            return False
        expected.status = TaskStatus.PENDING
        expected.deaths, expected.has_verdict = 0, False
        expected.fresh_starts += fresh
        expected.let_go()
        return True

    # -- workers -----------------------------------------------------------------------------------

    @rule(worker=st.sampled_from(["w-1", "w-2"]))
    def claim(self, worker: str) -> None:
        claimed = self.store.tasks.claim(
            worker, self.now, LEASE_SECONDS, max_expired_leases=MAX_DEATHS
        )
        for task_id, expected in self.expected.items():  # oldest first
            if not expected.is_claimable(self.seconds):
                continue
            if expected.lease_until is not None:
                expected.deaths += 1
            if expected.deaths > MAX_DEATHS:
                expected.status = TaskStatus.ERROR
                expected.let_go()
                continue
            expected.attempt += 1
            if expected.status is TaskStatus.PENDING:
                expected.status = TaskStatus.PROCESSING
            expected.lease_until = self.seconds + LEASE_SECONDS
            assert claimed is not None
            assert claimed.id == task_id
            self.claims.append(Claim(task_id, expected.attempt, worker))
            return
        assert claimed is None

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        action=st.sampled_from(["renew", "verdict", "done", "error", "release", "let go"]),
    )
    def write(self, data: st.DataObject, action: str) -> None:
        """By any owner, present or past."""
        claim = data.draw(st.sampled_from(self.claims))
        expected = self.expected[claim.task_id]
        is_owner = expected.attempt == claim.attempt and expected.status in OWNED
        is_owner = is_owner and expected.lease_until is not None
        if action == "let go":
            self.store.tasks.release_canceled(claim)
            is_last = expected.attempt == claim.attempt
            if is_last and expected.status is TaskStatus.CANCELED:
                expected.let_go()
            return
        calls: dict[str, Callable[[], object]] = {
            "renew": lambda: self.store.tasks.renew(claim, self.now, LEASE_SECONDS),
            "verdict": lambda: self.store.tasks.record(claim, self.now, promotion=PROMOTION),
            "done": lambda: self.store.tasks.finish(claim, self.now, TaskStatus.DONE),
            "error": lambda: self.store.tasks.finish(claim, self.now, TaskStatus.ERROR, "why"),
            "release": lambda: self.store.tasks.give_back(claim, self.now),
        }
        if not is_owner:
            with pytest.raises(LeaseLost, match=claim.task_id):
                calls[action]()
            return
        answer = calls[action]()
        if action == "renew":
            assert answer == expected.status
            expected.lease_until = self.seconds + LEASE_SECONDS
        elif action == "verdict":
            expected.has_verdict = True
        else:
            if action == "release":
                is_processing = expected.status is TaskStatus.PROCESSING
                expected.status = TaskStatus.PENDING if is_processing else TaskStatus.STOPPING
            elif action == "error":
                expected.status = TaskStatus.ERROR
            else:
                is_processing = expected.status is TaskStatus.PROCESSING
                expected.status = TaskStatus.DONE if is_processing else TaskStatus.STOPPED
                assert answer == expected.status
            expected.let_go()

    @rule(seconds=st.sampled_from([1.0, LEASE_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.seconds += seconds

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def agrees_with_the_model(self) -> None:
        for task_id, expected in getattr(self, "expected", {}).items():
            task = self.store.tasks.get(task_id)
            assert task.status == expected.status
            assert (task.attempt, task.expired_leases) == (expected.attempt, expected.deaths)
            assert task.fresh_starts == expected.fresh_starts
            assert (task.promotion is not None) == expected.has_verdict
            assert (task.worker_id is None) == (expected.lease_until is None)

    @invariant()
    def tells_a_legal_history(self) -> None:
        for task_id, expected in getattr(self, "expected", {}).items():
            statuses: list[TaskStatus] = []
            for numbered in self.store.tasks.events(task_id, 0, 1000):
                kind = numbered.event.kind
                if kind is TaskEventKind.CLAIMED and statuses[-1] is TaskStatus.PENDING:
                    statuses.append(TaskStatus.PROCESSING)
                elif kind is TaskEventKind.GIVEN_BACK and statuses[-1] is TaskStatus.PROCESSING:
                    statuses.append(TaskStatus.PENDING)
                elif (after := STATUS_AFTER.get(kind)) is not None:
                    statuses.append(after)
            assert statuses[-1] == expected.status
            for before, after in pairwise(statuses):
                assert after in LEGAL_TRANSITIONS[before]


@pytest.mark.parametrize(
    "backend", ["memory", pytest.param("sqlite", marks=pytest.mark.slow)], indirect=True
)
def test_random_commands_keep_a_task_legal(backend: Backend) -> None:
    """Whatever clients and workers do, in whatever order, a task is where its model says, a stale
    owner changes nothing, and its history is a chain of legal transitions."""
    machine = type("Machine", (TaskMachine,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
