"""One task's way from clicks to a promoted model, or none. Read `run_iteration` first."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from embedding_studio.clickstream import BatchStatus, SessionBatch
from embedding_studio.deletion import remove_tree
from embedding_studio.engine.attempt import POLL_SECONDS, Attempt, House
from embedding_studio.engine.failures import PROPOSING
from embedding_studio.engine.jobs import (
    SESSION_LINES,
    BaselineResult,
    DrawSearch,
    PrepareData,
    SaveInitialModel,
    ScoreBaseline,
    mean_metrics,
)
from embedding_studio.engine.lease import Lease
from embedding_studio.engine.promotion import decide
from embedding_studio.engine.trials import Trials
from embedding_studio.errands.champions import Champions
from embedding_studio.errors import (
    Conflict,
    CorruptModel,
    Draining,
    ExecutorUnavailable,
    LeaseLost,
    NotFound,
)
from embedding_studio.methods import AnyMethod, Parameters, Scores
from embedding_studio.search import FinishedTrial, draw_sets
from embedding_studio.tasks import (
    FineTuningTask,
    Promotion,
    StoredModel,
    TaskEventKind,
    TaskStatus,
)
from embedding_studio.tracking import OlderIteration, story
from embedding_studio.tracking.models import OTHER_CHAMPION

log = logging.getLogger(__name__)

SNAPSHOT_PAGE = 1000
SEEDS_PER_GENERATION = 100_000
ESTIMATE_FROM_SETS = 16
ESTIMATE = "estimated_trained_tokens"


def run_iteration(house: House, task: FineTuningTask, lease: Lease, method: AnyMethod) -> None:
    """Execute a claimed task to its end, from wherever an earlier attempt left it.

    A task that is to stop ends with the best model so far, and Stopped is raised if there is none.
    Raises LeaseLost or Draining when the task is no longer to be worked on, IterationError and
    MethodError when it cannot succeed; the caller ends the task accordingly.
    """
    for attempt in range(1, task.attempt + 1):  # a later one may be at work while we slept
        remove_tree(house.settings.work_folder / f"{task.id}-{attempt}", ignore_errors=True)
    iteration = _Iteration(house, task, lease, method)
    try:
        if task.promotion is None:
            batch = iteration.find_batch()
            start = iteration.fetch_starting_model()
            digest = iteration.take_snapshot(batch)
            iteration.prepare_data()
            if batch.status is BatchStatus.COLLECTING:
                iteration.try_start()  # what fails up to here leaves the batch collecting
                batch = iteration.release_batch(batch, digest)
            iteration.open_experiment(batch.batch_id, start)
            iteration.score_baseline()
            best = iteration.search()
            promotion = iteration.judge(start, best)
        else:  # an earlier attempt got as far as the verdict: only its consequences are missing
            promotion = iteration.recall_verdict()
        iteration.summarize()
        iteration.carry_out(promotion)
        iteration.finish()
    finally:
        iteration.remove_local_copies()


class _Iteration:
    def __init__(self, house: House, task: FineTuningTask, lease: Lease, method: AnyMethod) -> None:
        self._attempt = Attempt(house, task, lease, method)
        self._store = self._attempt.store
        self._tracking = house.tracking
        self._settings = house.settings
        self._task = task
        self._lease = lease
        self._method = method
        self._release_id = f"task {task.id}"
        self._snapshot = self._attempt.work / "sessions.jsonl"
        self._method_name = task.fine_tuning_method
        self._champions = Champions(self._store, self._tracking, house.clock)
        self._experiment_id = task.experiment_id or ""
        self._best_model: StoredModel | None = None
        self._baseline_run_id = ""
        self._baseline: Mapping[str, float] = {}
        self._scored: BaselineResult | None = None
        self._baseline_test_scores: Scores | None = None
        self._baseline_queries: int | None = None
        self._figures: dict[str, float] = {}
        self._trained_tokens = 0
        self._seed = house.settings.seed
        self._drawing: Future[None] | None = None

    # -- data and starting point ---------------------------------------------------------------

    def find_batch(self) -> SessionBatch:
        """Return the batch to learn from: the one that the task names, or that an earlier attempt
        released for it, else the one now collecting."""
        named = self._task.batch_id
        if named is not None:
            batch = self._attempt.patiently(partial(self._store.clickstream.get_batch, named))
            if batch.status is not BatchStatus.RELEASED:
                raise Conflict(
                    f"batch {named} is still collecting: release it, then restart the task"
                )
            return batch
        released = self._attempt.patiently(
            partial(self._store.clickstream.find_release, self._release_id)
        )
        if released is not None:  # before the attempt could say so
            self._record_release(released)
            return released
        collecting = self._attempt.patiently(self._store.clickstream.collecting_batch)
        if collecting is None:
            raise Conflict(
                "no batch is collecting, so there is nothing to learn from: post sessions, then "
                "restart the task"
            )
        return collecting

    def fetch_starting_model(self) -> StoredModel:
        """Copy the champion to the work folder: the initial model, until another is promoted."""
        registered = self._attempt.patiently(partial(self._champions.of, self._method_name))
        if registered.is_initial:  # the method may start from another one by now
            folder = self._attempt.work / "initial"
            self._attempt.run(SaveInitialModel(self._attempt.ref, folder))
            initial = self._tracking.store_initial_model(
                self._task.registered_name, folder, self._task.id
            )
            begin = partial(self._champions.begin_with, self._task, initial)
            registered = self._attempt.patiently(begin)
        self._mirror_champion()
        model = registered.version(registered.champion).model
        try:
            self._tracking.download_model(model, self._attempt.start_folder)
        except CorruptModel as error:
            raise CorruptModel(
                f"{error}. It is the model to start from: {OTHER_CHAMPION}"
            ) from error
        return model

    def _mirror_champion(self) -> None:
        """Return once MLflow's alias shows the champion."""
        seconds = self._settings.lease_seconds
        mirror = partial(self._champions.mirror, self._method_name, seconds)
        while not self._attempt.patiently(mirror):
            self._lease.check()
            time.sleep(POLL_SECONDS)

    def take_snapshot(self, batch: SessionBatch) -> str:
        """Copy the sessions of the batch as they are now to a file; return a digest of it."""
        digest = hashlib.sha256()
        with self._snapshot.open("wb") as lines:
            after = 0
            while page := self._attempt.patiently(
                partial(self._store.clickstream.read, batch.batch_id, after, SNAPSHOT_PAGE)
            ):
                self._lease.check()
                for numbered in page:
                    line = SESSION_LINES.dump_json(numbered.session) + b"\n"
                    digest.update(line)
                    lines.write(line)
                after = page[-1].number
        return digest.hexdigest()

    def prepare_data(self) -> None:
        """Prepare the snapshot for all trials."""
        remove_tree(self._attempt.data_folder, ignore_errors=True)
        weights = self._task.event_weights or {}
        prepared = self._attempt.run(
            PrepareData(self._attempt.ref, self._snapshot, self._attempt.data_folder, weights)
        )
        self._snapshot.unlink()
        self._figures = dict(prepared.figures)
        sessions = int(prepared.figures["sessions"])
        self._attempt.record(
            TaskEventKind.DATA_PREPARED,
            f"{sessions} sessions are prepared; {prepared.events.tell() or 'every event counts'}",
            {"sessions": sessions, **prepared.events.as_data()},
        )

    def try_start(self) -> None:
        """Score the starting model before anything is used up: it is the method's first work."""
        self._lease.show(phase="baseline", main_metric_name=self._method.main_metric)
        self._scored = self._score_start()

    def release_batch(self, batch: SessionBatch, digest: str) -> SessionBatch:
        """Release the batch that is prepared; if sessions, events or marks have come to it since
        its snapshot of that digest, prepare it again.

        Raises Conflict when another release took it."""
        self._lease.beat()
        self._attempt.check()  # a task that was ended by now takes nothing along
        now, batch_id = self._attempt.clock(), batch.batch_id
        release = partial(self._store.clickstream.release, self._release_id, now, batch_id)
        released = self._attempt.patiently(release)
        self._record_release(released)
        if self.take_snapshot(released) != digest:
            self._scored = None
            self.prepare_data()
        self._snapshot.unlink(missing_ok=True)
        return released

    def _record_release(self, batch: SessionBatch) -> None:
        self._attempt.record(
            TaskEventKind.BATCH_RELEASED,
            f"batch {batch.batch_id} is released, with {batch.session_count} sessions",
            {"batch_id": batch.batch_id, "sessions": batch.session_count},
            batch_id=batch.batch_id,
        )

    def open_experiment(self, batch_id: str, start: StoredModel) -> None:
        opened = self._tracking.open_iteration(
            self._task.id,
            self._task.registered_name,
            batch_id,
            start.run_id,
            self._task.fresh_starts,
            self._task.project,
        )
        self._experiment_id = opened.experiment_id
        # each generation draws other sets; an attempt of the same one draws the same again
        self._seed = self._settings.seed + SEEDS_PER_GENERATION * (opened.generation - 1)
        params = dict.fromkeys(name for some in self._draw_sets() for name in some)
        self._tracking.keep_view(
            opened.experiment_id, self._method.main_metric, self._method.direction, params
        )
        if self._task.experiment_id != self._experiment_id:
            self._attempt.record(
                TaskEventKind.EXPERIMENT_OPENED,
                f"MLflow experiment {self._experiment_id}, from the model of run {start.run_id}",
                {"experiment_id": self._experiment_id, "start_run_id": start.run_id},
                experiment_id=self._experiment_id,
            )
        self._tracking.kill_unfinished(self._experiment_id)

    def score_baseline(self) -> None:
        """Score the starting model as it is, on the data of every trial, and estimate the cost."""
        self._lease.show(phase="baseline", main_metric_name=self._method.main_metric)
        finished = self._tracking.finished_baseline(self._experiment_id)
        if finished is not None:
            self._baseline_run_id, metrics = finished
        else:
            self._tracking.record_data(self._experiment_id, self._figures)
            self._baseline_run_id = self._tracking.start_baseline(self._experiment_id)
            baseline = self._scored or self._score_start()
            self._baseline_test_scores = baseline.test_scores
            self._baseline_queries = baseline.queries
            metrics = dict(baseline.metrics)
            value = metrics[self._method.main_metric]
            if baseline.tokens_per_trial is not None:
                metrics[ESTIMATE] = round(
                    baseline.tokens_per_trial * (self._attempt.budget.max_trials or 1)
                )
            self._tracking.log_output(self._baseline_run_id, self._attempt.outputs)
            self._tracking.finish_run(self._baseline_run_id, metrics, value=value)
            self._attempt.record(
                TaskEventKind.BASELINE_SCORED,
                f"the starting model has {self._method.main_metric} {value:.4f} on validation",
                {"main_metric": self._method.main_metric, "value": value},
            )
            for warning in baseline.warnings:
                self._attempt.warn(warning, self._baseline_run_id)
        self._baseline = {name: value for name, value in metrics.items() if name != ESTIMATE}
        self._lease.show(baseline=metrics[self._method.main_metric])
        self._recall_cost(metrics)

    def _score_start(self) -> BaselineResult:
        attempt, sets, copy = self._attempt, self._draw_sets(), self._attempt.work / "saved again"
        return attempt.run(
            ScoreBaseline(attempt.ref, attempt.start_folder, attempt.data_folder, copy, sets)
        )

    def _draw_sets(self) -> list[Parameters]:
        """Return what the trials may look like."""
        draw = partial(draw_sets, self._method.suggest, ESTIMATE_FROM_SETS, self._settings.seed)
        return self._attempt.call(PROPOSING, draw, self._attempt.check)

    # -- search ----------------------------------------------------------------------------------

    def search(self) -> StoredModel:
        """Run the trials until the budget is spent; return the best model."""
        trials = Trials(
            self._attempt, self._experiment_id, self._seed, self._baseline, self._baseline_queries
        )
        self._best_model = trials.run()
        self._trained_tokens = trials.trained_tokens
        self._drawing = self._draw(trials.finished)  # while the models are judged
        return self._best_model

    def _draw(self, trials: Sequence[FinishedTrial]) -> "Future[None]":
        metric, direction = self._method.main_metric, self._method.direction
        folder = self._attempt.work / "summary"
        return self._attempt.submit(DrawSearch(tuple(trials), direction, metric, folder))

    def _recall_cost(self, baseline: Mapping[str, float]) -> None:
        """Go on from what MLflow knows of the estimate and of the trials of earlier attempts."""
        self._trained_tokens = sum(self._tracking.trained_tokens(self._experiment_id).values())
        self._lease.show(
            trained_tokens=self._trained_tokens,
            estimated_trained_tokens=int(baseline[ESTIMATE]) if ESTIMATE in baseline else None,
        )

    # -- verdict and consequences ----------------------------------------------------------------

    def judge(self, start: StoredModel, best: StoredModel) -> Promotion:
        """Score best and baseline on the untouched test split and record the fenced verdict."""
        self._lease.show(phase="promote", seconds_left=None)
        if not self._attempt.best_folder.exists():  # found by an earlier attempt
            self._tracking.download_model(best, self._attempt.best_folder)
        before = self._baseline_test_scores
        if before is None:  # the baseline run is an earlier attempt's
            before = self._attempt.score(self._attempt.start_folder, "test")
        after = self._attempt.score(self._attempt.best_folder, "test")
        metric = self._method.main_metric
        self._tracking.log_test_scores(self._baseline_run_id, mean_metrics(before, metric))
        self._tracking.log_test_scores(best.run_id, mean_metrics(after, metric))
        promotion = decide(metric, self._method.direction, before, after, self._settings.seed)
        registered = self._attempt.patiently(partial(self._champions.of, self._method_name))
        if promotion.promoted and (known := registered.version_of(best.run_id)) is not None:
            promotion = _refused(
                promotion, f"it was champion as version {known.number} and was rolled back"
            )
        elif promotion.promoted and not registered.is_champion(start.run_id):
            promotion = _refused(promotion, f"{registered.say_champion()}: start a new task")
        self._record_verdict(promotion)
        return promotion

    def _record_verdict(self, promotion: Promotion) -> None:
        verdict = story.verdict(promotion)
        kind = TaskEventKind.PROMOTED if promotion.promoted else TaskEventKind.REFUSED
        figures = {"baseline": promotion.baseline, "best": promotion.best}
        self._attempt.record(kind, verdict, figures, promotion=promotion)
        log.info("%s", verdict)

    def recall_verdict(self) -> Promotion:
        """Return the verdict that an earlier attempt recorded."""
        assert self._task.promotion is not None
        self._best_model = self._task.best_model
        finished = self._tracking.finished_baseline(self._experiment_id)
        self._recall_cost(finished[1] if finished else {})
        return self._task.promotion

    def summarize(self) -> None:
        """Keep what the search found, drawn and as a table, in a run of its own.

        A drawing that fails is told there and in the log: no model hangs on it."""
        if self._tracking.has_summary(self._experiment_id):
            return
        if self._drawing is None:  # an earlier attempt ended between its verdict and this
            metric = self._method.main_metric
            self._drawing = self._draw(self._tracking.finished_trials(self._experiment_id, metric))
        folder: Path | None = self._attempt.work / "summary"
        failure: Exception | None = None
        try:
            self._attempt.result_of(self._drawing)
        except (ExecutorUnavailable, LeaseLost, Draining):
            raise
        except Exception as error:  # noqa: BLE001 - no model hangs on a drawing
            folder, failure = None, error
            log.warning("the search was not drawn: %r", failure)
        self._tracking.store_summary(self._experiment_id, folder, repr(failure))

    def carry_out(self, promotion: Promotion) -> None:
        """Move the champion if the verdict says so, then remove the older iterations."""
        self._lease.check()
        if (best := self._best_model) is not None:
            if promotion.promoted:
                promotion = self._promote(best, promotion)
            self._tracking.describe_verdict(self._experiment_id, promotion, best)
        self._lease.show(phase="clean up")
        keep, keep_models = self._settings.keep_iterations, self._settings.keep_models
        self._tracking.remove_older_iterations(
            self._task.registered_name, self._experiment_id, keep, keep_models, self._retire
        )
        if self._settings.keep_batches:
            self._attempt.patiently(
                partial(self._store.clickstream.delete_older, self._settings.keep_batches)
            )

    def _promote(self, best: StoredModel, promotion: Promotion) -> Promotion:
        """Make the best model champion; take the verdict back if the champion was moved since."""
        start_run_id = self._tracking.start_run_id(self._experiment_id)
        promote = partial(self._champions.promote, self._task, best, promotion, start_run_id)
        try:
            self._attempt.patiently(promote)
        except Conflict as error:
            promotion = _refused(promotion, f"{error}: start a new task")
            self._record_verdict(promotion)
        self._mirror_champion()
        return promotion

    def _retire(self, older: OlderIteration) -> bool:
        """Note in the store that an iteration goes, before it does; False if it has to stay."""
        now, keep = self._attempt.clock(), self._settings.keep_champions
        retire = partial(
            self._store.models.update,
            self._method_name,
            lambda model: model.retired(older.run_ids, keep, now),
        )
        try:
            self._attempt.patiently(retire)
        except Conflict:
            return False
        what = "its experiment goes, with its model" if older.is_whole else "its model goes"
        why = f"{what}, for task {self._task.id} is newer"
        with suppress(NotFound):
            self._attempt.patiently(
                partial(
                    self._store.tasks.forget_iteration,
                    older.task_id,
                    older.experiment_id,
                    now,
                    why,
                    older.is_whole,
                )
            )
        return True

    def finish(self) -> None:
        self._lease.beat()  # the last word on progress
        self._lease.check()
        self._tracking.set_iteration_state(self._experiment_id, "done")
        self._tracking.settle()
        claim, now = self._lease.claim, self._attempt.clock()
        self._attempt.patiently(partial(self._store.tasks.finish, claim, now, TaskStatus.DONE))

    def remove_local_copies(self) -> None:
        if self._drawing is not None:
            self._attempt.executor.kill(self._drawing)
            wait([self._drawing])
        remove_tree(self._attempt.work, ignore_errors=True)


def _refused(promotion: Promotion, reason: str) -> Promotion:
    return replace(promotion, promoted=False, reason=reason)
