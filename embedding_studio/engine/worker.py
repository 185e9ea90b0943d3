"""The worker: claims tasks one at a time, keeps their leases, runs their iterations, drains.

APScheduler is the timer: one job looks for work, the other beats. Nothing is persisted in it."""

import gc
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from embedding_studio.clock import DatabaseClock, utc_now
from embedding_studio.engine.attempt import run_iteration
from embedding_studio.engine.failures import describe, is_plugins, trace
from embedding_studio.engine.house import House
from embedding_studio.engine.lease import Lease
from embedding_studio.errands import webhooks
from embedding_studio.errands.lifetimes import expire_sessions
from embedding_studio.errands.mirror import bring_along, mirror_all
from embedding_studio.errands.schedules import run_due
from embedding_studio.errands.sweep import sweep
from embedding_studio.errands.webhooks import AT_A_TIME, Deliveries, check_secret
from embedding_studio.errors import (
    Draining,
    ExecutorUnavailable,
    LeaseLost,
    Stopped,
    StoreUnavailable,
    TrialCrashed,
)
from embedding_studio.executors import open_executor
from embedding_studio.loaders.sources import sources_of
from embedding_studio.logs import OncePerMinute, about, adopt_libraries
from embedding_studio.methods import AnyMethod, MethodCatalog, discover_methods
from embedding_studio.settings import Settings
from embedding_studio.store import open_store
from embedding_studio.tasks import FineTuningTask, TaskStatus
from embedding_studio.tracking import open_tracking
from embedding_studio.workers import WorkerRecord, id_beginning, silence_allowed

if TYPE_CHECKING:
    from embedding_studio.tracking.tracking import Tracking

log = logging.getLogger(__name__)

MAX_OUTAGES = 5
"""After this many outages in a row, without progress between them, a task is an error."""
MAX_CRASHES = 1
"""How often a step whose process died is done again: its memory may have been another's need."""
MAX_PAUSE_SECONDS = 30.0
CHECK_SECONDS = 60.0
"""How often it is looked whether the methods' initial models are there."""
ERRANDS_SECONDS = 2.0
"""How often schedules, webhooks and champions' aliases are looked after."""
EXPIRY_SECONDS = 3600.0
"""How often sessions are looked for that were kept for long enough."""
BEAT_SECONDS = 1.0
"""How often the lease is renewed at least, and so how soon a cancel is noticed."""


class Worker:
    """One task at a time. `work_once` does a tick's work; `run_forever` ticks until drained."""

    def __init__(self, house: House, catalog: MethodCatalog, worker_id: str | None = None) -> None:
        self._clock = DatabaseClock(house.clock)
        self._house = replace(house, clock=self._clock)
        self._catalog = catalog
        self._missing_models: dict[str, str] = {}
        self.worker_id = worker_id or f"{id_beginning(os.getpid())}{uuid.uuid4().hex[:6]}"
        self._lease: Lease | None = None
        self._is_draining = threading.Event()
        self._has_brought_along = False
        self._deliveries = Deliveries(house.store, house.settings, self._clock)

    def work_once(self) -> bool:
        """Claim a task and run it to its end; False if there is none to claim."""
        if self._is_draining.is_set():
            return False
        self._renew_catalog()
        settings = self._house.settings
        task = self._house.store.tasks.claim(
            self.worker_id,
            self._house.clock(),
            settings.lease_seconds,
            skip_methods=self._methods_of_others(),
            max_expired_leases=settings.max_expired_leases,
        )
        if task is None:
            return False
        lease = Lease(
            self._house.store, task, self.worker_id, settings.lease_seconds, self._house.clock
        )
        self._lease = lease
        try:
            with about(f"task {task.id}"):
                log.info("claimed, attempt %d", task.attempt)
                self._run(task, lease)
        finally:
            self._lease = None
        return True

    def _renew_catalog(self) -> None:
        """Take notice of plugins that were added, changed or removed since the last task."""
        renewed = self._catalog.renewed()
        if renewed is self._catalog:
            return
        self._catalog = renewed
        self._tell_failures()
        log.info("the plugins have changed; this worker carries %s", self._say_methods())
        self.beat()

    def _tell_failures(self) -> None:
        for place, why in self._catalog.failures.items():
            log.error("plugin %s did not load: %s", place, why)

    def _say_methods(self) -> str:
        return ", ".join(sorted(self._catalog.methods)) or "no method"

    def beat(self) -> None:
        """Say that this worker lives, and renew the lease of its task."""
        if (lease := self._lease) is not None:
            lease.beat()
        with _tried_again():
            record = WorkerRecord(
                self.worker_id,
                tuple(self._catalog.methods),
                self._clock(),
                self._catalog.failures,
                self._missing_models,
                self._clock.ahead_seconds,
                tuple(n for n, one in self._catalog.methods.items() if not one.learns_from_labels),
            )
            self._clock.ask(partial(self._house.store.workers.record, record))

    def check_initial_models(self) -> None:
        """See which methods could not start, for `health` to tell before a task does."""
        if (self._house.settings.executor or "").startswith("ray"):
            return  # the nodes have them, or have not
        missing: dict[str, str] = {}
        for name, method in self._catalog.methods.items():
            try:
                method.check_initial_model()
            except Exception as error:  # noqa: BLE001 - a plugin's: it is what is told
                missing[name] = str(error) or repr(error)
        for name in missing.keys() - self._missing_models.keys():
            log.warning("%s has no initial model: %s", name, missing[name])
        self._missing_models = missing

    def run_schedules(self) -> None:
        """Create the tasks of schedules whose time has come."""
        house, methods = self._house, self._catalog.methods.items()
        weights = {name: method.event_weights for name, method in methods}
        with _tried_again():
            run_due(house.store, house.clock(), house.settings.max_pending_tasks, weights)

    def tell(self) -> None:
        """Tell webhooks of ended tasks, and of champions that have changed."""
        with _tried_again():
            self._deliveries.tell(self._is_draining.is_set)

    def mirror(self) -> None:
        """Point MLflow's aliases to the champions, after those from before were brought along."""
        try:
            with _tried_again():
                if not self._has_brought_along:
                    bring_along(self._house, self._catalog.methods)
                    self._has_brought_along = True
                mirror_all(self._house)
        except Exception:  # the next time may go better
            log.exception("MLflow's aliases may be behind the champions")

    def sweep(self) -> None:
        """Remove what crashes left behind."""
        house = self._house
        try:
            sweep(house.store, house.tracking, house.settings, house.clock())
        except Exception:  # the next sweep finds what this one did not
            log.exception("the sweep was broken off")

    def expire_sessions(self) -> None:
        """Delete sessions that were kept for as long as ES_KEEP_SESSIONS says."""
        if (lifetime := self._house.settings.session_lifetime) is None:
            return
        with _tried_again():
            house = self._house
            expire_sessions(house.store, lifetime, house.clock(), self._is_draining.is_set)

    def drain(self) -> None:
        """Claim nothing more, and give the task in hand back."""
        self._is_draining.set()
        if (lease := self._lease) is not None:
            lease.drain()

    def run_forever(self) -> None:
        """Tick until SIGTERM or SIGINT, then drain; a second signal ends the process at once."""
        settings = self._house.settings
        self._tell_failures()
        self.beat()
        adopt_libraries()
        logging.getLogger(webhooks.__name__).addFilter(OncePerMinute())
        # a tick that takes longer than the interval is the normal case, not a warning
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        scheduler = BackgroundScheduler(
            executors={
                "default": ThreadPoolExecutor(6), "webhooks": ThreadPoolExecutor(AT_A_TIME),
            },
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )  # fmt: skip

        def every(seconds: float, errand: Callable[[], None], **how: Any) -> None:
            scheduler.add_job(errand, "interval", seconds=seconds, **how)

        every(min(BEAT_SECONDS, settings.lease_seconds / 3), self.beat)
        every(settings.poll_seconds, self._tick, next_run_time=utc_now())
        every(ERRANDS_SECONDS, self.run_schedules)
        # while one waits for a receiver, the next begins beside it
        every(ERRANDS_SECONDS, self.tell, executor="webhooks", max_instances=AT_A_TIME)
        every(ERRANDS_SECONDS, self.mirror)
        every(CHECK_SECONDS, self.check_initial_models, next_run_time=utc_now())
        if settings.sweep_minutes:
            every(60 * settings.sweep_minutes, self.sweep, next_run_time=utc_now())

        every(EXPIRY_SECONDS, self.expire_sessions, next_run_time=utc_now())

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._is_draining.is_set():
                os._exit(128 + number)
            self.drain()

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        gc.collect()  # what the imports made lives for ever: half a second, in no task's time
        gc.freeze()
        scheduler.start()
        log.info("worker %s is ready; it carries %s", self.worker_id, self._say_methods())
        while not self._is_draining.wait(timeout=1.0):
            pass  # woken every second, for Python handles signals between waits only
        scheduler.shutdown(wait=True)
        self._house.executor.close()
        self._house.store.workers.remove(self.worker_id)
        log.info("worker %s has drained", self.worker_id)

    def _tick(self) -> None:
        if not self._clock.is_told:  # it says which leases are over
            return
        try:
            while self.work_once():
                pass
        except StoreUnavailable as error:
            log.warning("the store does not answer, will try again: %s", error)

    def _methods_of_others(self) -> frozenset[str]:
        """Return the methods that only other live workers carry: their tasks are theirs."""
        silence = silence_allowed(self._house.settings)
        workers = self._house.store.workers.seen(self._house.clock() - silence)
        carried = {name for worker in workers for name in worker.methods}
        return frozenset(carried - set(self._catalog.methods))

    def _run(self, task: FineTuningTask, lease: Lease) -> None:
        store, clock = self._house.store, self._house.clock
        try:
            method = self._catalog.get(task.fine_tuning_method)
            self._iterate(task, lease, method)
            log.info("done")
        except Stopped as error:
            self._end(task, lease, TaskStatus.STOPPED, str(error))
        except LeaseLost as error:
            log.warning("%s", error)
            self._clean_up_if_canceled(task, lease)
        except Draining as error:
            store.tasks.give_back(lease.claim, clock())
            log.info("%s", error)
        except StoreUnavailable as error:
            # nothing can be written: the lease runs out and the task is claimed again
            log.warning("given up, the store does not answer: %s", error)
        except Exception as error:  # noqa: BLE001 - around a task: told with the task
            why = describe(error, self._catalog.methods.get(task.fine_tuning_method))
            self._end(
                task, lease, TaskStatus.ERROR, why, trace(error) if is_plugins(error) else None
            )

    def _iterate(self, task: FineTuningTask, lease: Lease, method: AnyMethod) -> None:
        """Run the iteration; after an outage of MLflow or the executor again, from where it was,
        and so after the death of a process at a step that is no trial.

        The task stays this worker's meanwhile. Too many of either by which nothing was gained end
        it."""
        house = self._house.guarded(lease.ensure_owned)
        crashes, outages, gained = 0, 0, lease.gained
        while True:
            try:
                return run_iteration(house, task, lease, method)
            except Exception as error:
                has_crashed = isinstance(error, TrialCrashed)
                if not has_crashed and not self._is_outage(error):
                    raise
                if lease.gained != gained:
                    crashes, outages, gained = 0, 0, lease.gained
                crashes, outages = crashes + has_crashed, outages + (not has_crashed)
                if crashes > MAX_CRASHES or outages > MAX_OUTAGES:
                    raise
                what = f"crash {crashes}" if has_crashed else f"outage {outages}"
                log.warning("waits for MLflow or the executor, %s: %s", what, error)
            self._wait_for_services(lease)
            task = self._house.in_project(task.project).store.tasks.get(task.id)

    def _is_outage(self, error: BaseException) -> bool:
        """Return whether MLflow, or the place where trials run, is out of order."""
        return isinstance(error, ExecutorUnavailable) or self._house.tracking.is_outage(error)

    def _wait_for_services(self, lease: Lease) -> None:
        """Return when MLflow and the executor answer. Raises LeaseLost or Draining."""
        pause = 1.0
        while True:
            self._is_draining.wait(pause)
            lease.check()
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
            try:
                self._house.tracking.ping()
                return self._house.executor.ping()
            except Exception as error:
                if not self._is_outage(error):
                    raise

    def _end(
        self,
        task: FineTuningTask,
        lease: Lease,
        status: TaskStatus,
        why: str,
        traceback: str | None = None,
    ) -> None:
        """End a task that has no verdict. A traceback is kept in its history, and in MLflow."""
        store, now = self._house.store, self._house.clock()
        try:
            data = {"traceback": traceback} if traceback else {}
            end = store.tasks.finish(lease.claim, now, status, why, data)
        except LeaseLost as error:
            log.warning("%s: %s", error, why)
            self._clean_up_if_canceled(task, lease)
            return
        level = logging.WARNING if end is TaskStatus.ERROR else logging.INFO
        shown = f"\n{traceback}" if traceback else ""
        log.log(level, "%s: %s%s", end, why, shown)
        experiment_id = store.in_project(task.project).tasks.get(task.id).experiment_id
        with self._while_ended(task, end) as tracking:
            for attempted in tracking.iterations.of_task(task.id):
                tracking.runs.kill_unfinished(attempted)
                tracking.iterations.set_state(attempted, end, why)
            if traceback and experiment_id:
                tracking.runs.store_failure(experiment_id, traceback)

    def _clean_up_if_canceled(self, task: FineTuningTask, lease: Lease) -> None:
        store = self._house.store.in_project(task.project)
        now = store.tasks.get(task.id)
        if now.status is not TaskStatus.CANCELED or now.attempt != task.attempt:
            return
        model = store.models.update(
            task.registered_as, lambda model: model.without_task(task.id, self._house.clock())
        )
        with self._while_ended(task, TaskStatus.CANCELED) as tracking:
            tracking.iterations.discard_task(task.id, model.kept_run_ids)
            self._house.store.tasks.release_canceled(lease.claim)
            log.info("canceled, what it wrote is removed")

    @contextmanager
    def _while_ended(self, task: FineTuningTask, end: TaskStatus) -> Iterator["Tracking"]:
        """Yield MLflow to write to for as long as this attempt is the last, and the task stands as
        it ended: once it is restarted, what is there is another worker's."""
        store = self._house.store.in_project(task.project)

        def ensure_ended() -> None:
            now = store.tasks.get(task.id)
            if (now.status, now.attempt) != (end, task.attempt):
                raise LeaseLost(f"task {task.id} is no longer {end} as this worker left it")

        try:
            yield self._house.tracking.guarded(ensure_ended)
        except LeaseLost as error:
            log.info("%s", error)


@contextmanager
def _tried_again() -> Iterator[None]:
    """Around what is done again soon: a store that does not answer is no more than a warning."""
    try:
        yield
    except StoreUnavailable as error:
        log.warning("the store does not answer: %s", error)


def open_worker(settings: Settings) -> Worker:
    """Open everything a worker needs. Raises ConfigurationError, StoreUnavailable."""
    check_secret(settings)
    sources_of(settings)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    # first of all: a plugin may load MLflow, and finds the environment set that it reads then
    tracking = open_tracking(settings.resolved_tracking_uri, settings.artifacts_folder)
    catalog = discover_methods(settings.plugins_folder, settings.plugin_import_seconds)
    house = House(
        store=open_store(settings.resolved_store_url),
        tracking=tracking,
        executor=open_executor(settings.executor),
        settings=settings,
        clock=utc_now,
    )
    return Worker(house, catalog)
