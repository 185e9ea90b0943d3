"""One task's way from clicks to a promoted model, or none. Read `run_iteration` first."""

import logging
import shutil
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from embedding_studio.clickstream import BatchStatus
from embedding_studio.errors import (
    AllTrialsFailed,
    Conflict,
    CorruptModel,
    Stopped,
    StoreUnavailable,
    TrialCanceled,
    TrialPruned,
)
from embedding_studio.executors.base import Executor, Job, Report, Resources, Verdict
from embedding_studio.lease import Clock, Lease
from embedding_studio.methods import AnyMethod, Scores, is_better
from embedding_studio.promotion import decide
from embedding_studio.search import (
    FinishedTrial,
    Outcome,
    Proposal,
    Search,
    best_first,
    draw_sets,
)
from embedding_studio.settings import Settings
from embedding_studio.store.base import Store
from embedding_studio.tasks import (
    FineTuningTask,
    Promotion,
    StoredModel,
    TaskEvent,
    TaskEventKind,
    TaskStatus,
    line_of,
)
from embedding_studio.tracking import Tracking
from embedding_studio.trial import (
    SESSION_LINES,
    MethodRef,
    PrepareData,
    SaveInitialModel,
    Score,
    ScoreBaseline,
    Train,
    TrialResult,
    mean_metrics,
)

Result = TypeVar("Result")

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
SNAPSHOT_PAGE = 1000
SEEDS_PER_GENERATION = 100_000
ESTIMATE_FROM_SETS = 16
ESTIMATE = "estimated_trained_tokens"
SCORE_TOLERANCE = 1e-3
"""How far the score of a model read back may be from the one it was saved with."""


@dataclass(frozen=True, slots=True)
class House:
    """What an iteration works with; made once per worker."""

    store: Store
    tracking: Tracking
    executor: Executor
    settings: Settings
    clock: Clock


def run_iteration(house: House, task: FineTuningTask, lease: Lease, method: AnyMethod) -> None:
    """Execute a claimed task to its end, from wherever an earlier attempt left it.

    A task that is to stop ends with the best model so far, and Stopped is raised if there is none.
    Raises LeaseLost or Draining when the task is no longer to be worked on, IterationError and
    MethodError when it cannot succeed; the caller ends the task accordingly.
    """
    for stale in house.settings.work_folder.glob(f"{task.id}-*"):
        shutil.rmtree(stale)  # of an attempt on this machine that was killed
    iteration = _Iteration(house, task, lease, method)
    try:
        if task.promotion is None:
            batch_id = iteration.release_batch()
            start = iteration.fetch_starting_model()
            iteration.prepare_data(batch_id)
            iteration.open_experiment(batch_id, start)
            iteration.score_baseline()
            best = iteration.search()
            promotion = iteration.judge(start, best)
        else:  # an earlier attempt got as far as the verdict: only its consequences are missing
            promotion = iteration.recall_verdict()
        iteration.carry_out(promotion)
        iteration.finish()
    finally:
        iteration.remove_local_copies()


@dataclass
class _RunningTrial:
    """started: time.monotonic(). trained_tokens: as last heard of.
    ledger_error: what kept MLflow from being written to."""

    proposal: Proposal
    run_id: str
    model_folder: Path
    started: float
    reports: list[Report] = field(default_factory=list)
    trained_tokens: int = 0
    ledger_error: Exception | None = None

    @contextmanager
    def writes_to_ledger(self) -> Iterator[None]:
        """Around calls to MLflow: their failure is the task's, not the hyperparameter set's."""
        try:
            yield
        except Exception as error:
            self.ledger_error = error
            raise


class _Iteration:
    def __init__(self, house: House, task: FineTuningTask, lease: Lease, method: AnyMethod) -> None:
        self._house = house
        self._store = house.store.in_project(task.project)
        self._tracking = house.tracking
        self._executor = house.executor
        self._settings = house.settings
        self._task = task
        self._lease = lease
        self._method = method
        self._line = line_of(task)
        self._ref = MethodRef(method.meta.name, house.settings.plugins_folder)
        self._work = house.settings.work_folder / f"{task.id}-{task.attempt}"
        self._start_folder = self._work / "start"
        self._data_folder = self._work / "data"
        self._best_folder = self._work / "best"
        self._experiment_id = task.experiment_id or ""
        self._needs = Resources(method.num_cpus, method.num_gpus)
        self._has_model = task.best_model is not None  # uploaded, if not yet read back
        self._best_value: float | None = None
        self._best_model: StoredModel | None = None
        self._baseline_run_id = ""
        self._baseline: Mapping[str, float] = {}
        self._baseline_test_scores: Scores | None = None
        self._figures: dict[str, float] = {}
        self._trial_seconds: list[float] = []
        self._trained_tokens: dict[str, int] = {}  # by run
        self._max_trials = task.budget.max_trials or method.budget.max_trials or 1
        self._seed = house.settings.seed
        self._search = Search(method.direction, self._seed)

    # -- data and starting point ---------------------------------------------------------------

    def release_batch(self) -> str:
        """Return the task's batch, released; none named: the one now collecting, once per task."""
        if self._task.batch_id is not None:
            batch = self._patiently(partial(self._store.get_batch, self._task.batch_id))
            if batch.status is not BatchStatus.RELEASED:
                raise Conflict(
                    f"batch {batch.batch_id} is still collecting: release it, then restart the task"
                )
            return batch.batch_id
        release = partial(self._store.release_batch, f"task {self._task.id}", self._house.clock())
        batch = self._patiently(release)
        self._record(
            TaskEventKind.BATCH_RELEASED,
            f"batch {batch.batch_id} is released, with {batch.session_count} sessions",
            {"batch_id": batch.batch_id, "sessions": batch.session_count},
            batch_id=batch.batch_id,
        )
        return batch.batch_id

    def fetch_starting_model(self) -> StoredModel:
        """Copy the champion, else the initial model (uploaded once), to the work folder."""
        model = self._tracking.champion(self._line)
        if model is None:
            folder = self._work / "initial"
            self._run(SaveInitialModel(self._ref, folder))
            model = self._tracking.store_initial_model(self._line, folder, self._task.id)
        self._tracking.download_model(model, self._start_folder)
        return model

    def prepare_data(self, batch_id: str) -> None:
        """Take one snapshot of the batch and prepare it once for all trials."""
        snapshot = self._work / "sessions.jsonl"
        with snapshot.open("wb") as lines:
            after = 0
            while page := self._patiently(
                partial(self._store.read_batch, batch_id, after, SNAPSHOT_PAGE)
            ):
                self._lease.check()
                for numbered in page:
                    lines.write(SESSION_LINES.dump_json(numbered.session) + b"\n")
                after = page[-1].number
        self._figures = dict(self._run(PrepareData(self._ref, snapshot, self._data_folder)))
        snapshot.unlink()

    def open_experiment(self, batch_id: str, start: StoredModel) -> None:
        opened = self._tracking.open_iteration(
            self._task.id,
            self._line,
            batch_id,
            start.run_id,
            self._task.fresh_starts,
            self._task.project,
        )
        self._experiment_id = opened.experiment_id
        # each generation draws other sets; an attempt of the same one draws the same again
        self._seed = self._settings.seed + SEEDS_PER_GENERATION * (opened.generation - 1)
        self._search = Search(self._method.direction, self._seed)
        if self._task.experiment_id != self._experiment_id:
            self._record(
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
            self._baseline_run_id = self._tracking.start_baseline(
                self._experiment_id, self._figures
            )
            sets = draw_sets(self._method.suggest, ESTIMATE_FROM_SETS, self._seed)
            baseline = self._run(
                ScoreBaseline(self._ref, self._start_folder, self._data_folder, sets)
            )
            self._baseline_test_scores = baseline.test_scores
            metrics = dict(baseline.metrics)
            value = metrics[self._method.main_metric]
            if baseline.tokens_per_trial is not None:
                metrics[ESTIMATE] = round(baseline.tokens_per_trial * self._max_trials)
            self._tracking.finish_run(self._baseline_run_id, metrics, value=value)
            self._record(
                TaskEventKind.BASELINE_SCORED,
                f"the starting model has {self._method.main_metric} {value:.4f} on validation",
                {"main_metric": self._method.main_metric, "value": value},
            )
        self._baseline = {name: value for name, value in metrics.items() if name != ESTIMATE}
        self._lease.show(baseline=metrics[self._method.main_metric])
        self._recall_cost(metrics)

    # -- search ----------------------------------------------------------------------------------

    def search(self) -> StoredModel:
        """Run one trial per hyperparameter set until the budget is spent; keep the best model."""
        finished = self._replay_finished_trials()
        max_trials = self._max_trials
        max_minutes = self._task.budget.max_minutes or self._method.budget.max_minutes
        spent = sum(trial.seconds for trial in finished)
        deadline = None if max_minutes is None else time.monotonic() + max_minutes * 60 - spent
        started = len(finished)
        failed_before = sum(trial.outcome is Outcome.FAILED for trial in finished)
        failures: list[str] = []
        running: dict[Future[TrialResult], _RunningTrial] = {}
        self._lease.show(
            phase="search", max_trials=max_trials, finished_trials=started,
            failed_trials=failed_before,
        )  # fmt: skip
        try:
            while True:
                while (
                    len(running) < self._executor.slots(self._needs)
                    and started < max_trials
                    and (deadline is None or time.monotonic() < deadline)
                    and not self._lease.is_stopping
                ):
                    future, trial = self._start_trial()
                    running[future] = trial
                    started += 1
                if not running:
                    break
                for future in self._first_done(running, self._kill_when_grace_is_over):
                    failure = self._conclude(running.pop(future), future)
                    if failure is not None:
                        failures.append(failure)
                    finished_trials = started - len(running)
                    self._lease.show(
                        finished_trials=finished_trials,
                        failed_trials=failed_before + len(failures),
                        seconds_left=self._estimate_seconds(max_trials - finished_trials, deadline),
                    )
        except BaseException as error:
            for future in running:
                self._executor.kill(future)
            wait(running)
            if not self._tracking.is_outage(error):  # else the next attempt does it
                for trial in running.values():
                    self._tracking.kill_run(trial.run_id)
            raise
        # runs whose creation was answered too late, and so asked for again
        self._tracking.kill_unfinished(self._experiment_id)
        self._tracking.record_cost(self._experiment_id, self._count_tokens())
        if self._best_model is None:
            self._lease.beat()  # the last word on progress
            if self._lease.is_stopping:
                raise Stopped("stopped before any hyperparameter set had given a model")
            why = failures[-1] if failures else "the time budget was spent before one could finish"
            raise AllTrialsFailed(
                f"none of {started} hyperparameter sets gave a model; the last one: {why}. "
                "The tracebacks are in MLflow, with each failed run"
            )
        return self._best_model

    def _replay_finished_trials(self) -> list[FinishedTrial]:
        metric = self._method.main_metric
        trials = self._tracking.finished_trials(self._experiment_id, metric)
        self._search.replay(trials)
        self._search.enqueue(self._tracking.sets_without_model(self._experiment_id))
        previous = best_first(
            self._tracking.previous_trials(self._line, self._experiment_id),
            self._method.direction,
        )
        wanted = previous[: self._settings.warm_start_trials]
        self._search.enqueue(trial.suggested for trial in wanted)
        with_model = [trial for trial in trials if trial.has_model]
        if kept := best_first(with_model, self._method.direction):
            self._adopt_best(kept[0].value, self._tracking.stored_model(kept[0].run_id))
        return trials

    def _start_trial(self) -> tuple[Future[TrialResult], _RunningTrial]:
        self._lease.check()
        proposal = self._search.ask(self._method.suggest)
        seed = self._seed + proposal.number
        run_id = self._tracking.start_trial(self._experiment_id, proposal, seed)
        folder = self._work / f"trial-{proposal.number}"
        trial = _RunningTrial(proposal, run_id, folder, time.monotonic())
        self._lease.show(trial=proposal.number + 1, step=None, main_metric=None)
        job = Train(
            method=self._ref,
            params=proposal.params,
            seed=seed,
            data_folder=self._data_folder,
            start_folder=self._start_folder,
            model_folder=folder,
            best_value=self._best_value,
            baseline=self._baseline,
        )
        return self._executor.submit(job, self._listen_to(trial), self._needs), trial

    def _listen_to(self, trial: _RunningTrial) -> Callable[[Report], Verdict]:
        def on_report(report: Report) -> Verdict:
            self._lease.check()
            trial.reports.append(report)
            self._note_cost(trial, report.trained_tokens)
            number, value = trial.proposal.number, report.metrics[self._method.main_metric]
            with trial.writes_to_ledger():
                self._tracking.log_report(trial.run_id, report)
            self._lease.show(trial=number + 1, step=report.step, main_metric=value)
            is_hopeless = self._search.report(number, value, report.step)
            if self._lease.is_stopping:
                return Verdict.STOP
            return Verdict.PRUNE if is_hopeless else Verdict.CONTINUE

        return on_report

    def _first_done(
        self, running: Collection[Future[Any]], when_stopping: Callable[[Future[Any]], None]
    ) -> set[Future[Any]]:
        """Wait for the first of some jobs, asking the lease meanwhile."""
        while True:
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            self._lease.check()
            if done:
                return done
            if self._lease.is_stopping:
                for future in running:
                    when_stopping(future)

    def _kill_when_grace_is_over(self, future: Future[Any]) -> None:
        if self._lease.seconds_since_stop > self._settings.stop_grace_seconds:
            self._executor.kill(future)

    def _conclude(self, trial: _RunningTrial, future: Future[TrialResult]) -> str | None:
        """Write a finished trial to the ledger; return why it failed, if it did."""
        number = trial.proposal.number
        model, value = None, None
        try:
            result = future.result()
            self._note_cost(trial, result.trained_tokens)
            value = result.metrics[self._method.main_metric]
            if is_better(self._method.direction, value, self._best_value):
                model = self._upload(trial, result)
        except TrialPruned:
            self._tracking.finish_run(
                trial.run_id,
                {},
                trial.reports,
                outcome=Outcome.PRUNED,
                trained_tokens=trial.trained_tokens,
            )
            self._search.tell(number, Outcome.PRUNED)
            self._record_trial(TaskEventKind.TRIAL_PRUNED, number, "pruned, it had no prospects")
            return None
        except Exception as error:
            if error is trial.ledger_error:
                raise  # the ledger's failure, not the hyperparameter set's
            self._lease.check()
            if isinstance(error, TrialCanceled) and self._lease.is_stopping:
                self._tracking.kill_run(trial.run_id)
                why = (
                    f"killed, still going on {self._lease.seconds_since_stop:.0f} s after the stop"
                )
                self._record_trial(TaskEventKind.TRIAL_FAILED, number, why)
                return why
            log.warning("task %s: trial %d failed: %r", self._task.id, number + 1, error)
            self._tracking.delete_model(trial.run_id)
            self._tracking.finish_run(
                trial.run_id,
                {},
                trial.reports,
                outcome=Outcome.FAILED,
                failure="".join(traceback.format_exception(error)),
                trained_tokens=trial.trained_tokens,
            )
            self._search.tell(number, Outcome.FAILED)
            why = f"{type(error).__name__}: {error}"
            self._record_trial(TaskEventKind.TRIAL_FAILED, number, why)
            return why
        finally:
            shutil.rmtree(trial.model_folder, ignore_errors=True)
        wall_seconds = time.monotonic() - trial.started
        self._trial_seconds.append(wall_seconds)
        log.info(
            "task %s: trial %d: %s %.4f in %.1f s, %.0f %% of them not training",
            self._task.id, number + 1, self._method.main_metric, value, wall_seconds,
            100 * (1 - result.seconds["train"] / wall_seconds),
        )  # fmt: skip
        self._tracking.finish_run(
            trial.run_id,
            result.metrics,
            trial.reports,
            seconds={**result.seconds, "wall": wall_seconds},
            value=value,
            trained_tokens=trial.trained_tokens,
        )
        self._search.tell(number, Outcome.COMPLETE, value)
        self._record_trial(
            TaskEventKind.TRIAL_FINISHED,
            number,
            f"{self._method.main_metric} {value:.4f} on validation, in {wall_seconds:.1f} s",
            {"value": value, "seconds": round(wall_seconds, 1), "run_id": trial.run_id},
        )
        if model is not None:
            self._adopt_best(value, model)
        return None

    def _upload(self, trial: _RunningTrial, result: TrialResult) -> StoredModel:
        """Upload a model, then load it back and score it: only then may it replace the best.

        Raises CorruptModel when the model read back does not score what the trial scored.
        """
        metric = self._method.main_metric
        with trial.writes_to_ledger():
            model = self._tracking.upload_model(trial.run_id, trial.model_folder)
        self._has_model = True
        copy = self._work / f"copy-{trial.proposal.number}"
        with trial.writes_to_ledger():
            self._tracking.download_model(model, copy)
        read_back = mean_metrics(self._score(copy, "validation"), metric)[metric]
        if abs(read_back - result.metrics[metric]) > SCORE_TOLERANCE * max(1.0, abs(read_back)):
            raise CorruptModel(
                f"the model of run {trial.run_id} scored {result.metrics[metric]:.6f} before it "
                f"was saved and {read_back:.6f} after it was loaded back: does `save` write all?"
            )
        with trial.writes_to_ledger():
            self._tracking.confirm_model(model)
        shutil.rmtree(self._best_folder, ignore_errors=True)
        copy.rename(self._best_folder)
        return model

    def _adopt_best(self, value: float | None, model: StoredModel) -> None:
        """Make a stored model the best so far; only now may the former best's files go."""
        self._best_value, self._best_model = value, model
        self._lease.check()
        self._tracking.keep_best(self._experiment_id, model.run_id)
        self._record(
            TaskEventKind.BEST_MODEL_STORED,
            f"the best model so far is that of run {model.run_id}",
            {"run_id": model.run_id, "value": value},
            best_model=model,
        )
        self._lease.show(best_so_far=value)

    def _recall_cost(self, baseline: Mapping[str, float]) -> None:
        """Go on from what MLflow knows of the estimate and of the trials of earlier attempts."""
        self._trained_tokens = self._tracking.trained_tokens(self._experiment_id)
        self._lease.show(
            trained_tokens=self._count_tokens(),
            estimated_trained_tokens=int(baseline[ESTIMATE]) if ESTIMATE in baseline else None,
        )

    def _note_cost(self, trial: _RunningTrial, trained_tokens: int) -> None:
        trial.trained_tokens = self._trained_tokens[trial.run_id] = trained_tokens
        self._lease.show(trained_tokens=self._count_tokens())

    def _count_tokens(self) -> int:
        return sum(list(self._trained_tokens.values()))  # a copy: reports come from other threads

    def _estimate_seconds(self, trials_left: int, deadline: float | None) -> float | None:
        if not self._trial_seconds:
            return None
        left = trials_left * fmean(self._trial_seconds) / self._executor.slots(self._needs)
        return left if deadline is None else min(left, max(0.0, deadline - time.monotonic()))

    # -- verdict and consequences ----------------------------------------------------------------

    def judge(self, start: StoredModel, best: StoredModel) -> Promotion:
        """Score best and baseline on the untouched test split and record the fenced verdict."""
        self._lease.show(phase="promote", seconds_left=None)
        if not self._best_folder.exists():  # found by an earlier attempt
            self._tracking.download_model(best, self._best_folder)
        before = self._baseline_test_scores
        if before is None:  # the baseline run is an earlier attempt's
            before = self._score(self._start_folder, "test")
        after = self._score(self._best_folder, "test")
        metric = self._method.main_metric
        self._tracking.log_test_scores(self._baseline_run_id, mean_metrics(before, metric))
        self._tracking.log_test_scores(best.run_id, mean_metrics(after, metric))
        promotion = decide(metric, self._method.direction, before, after, self._settings.seed)
        champion = self._tracking.champion(self._line)
        if champion is not None and champion.run_id != start.run_id:
            promotion = replace(
                promotion,
                promoted=False,
                reason="another iteration changed the champion meanwhile: start a new task",
            )
        verdict = (
            f"{metric} on the test split: {promotion.best:.4f}, was {promotion.baseline:.4f}: "
            f"{'promoted' if promotion.promoted else 'not promoted'}, {promotion.reason}"
        )
        kind = TaskEventKind.PROMOTED if promotion.promoted else TaskEventKind.REFUSED
        figures = {"baseline": promotion.baseline, "best": promotion.best}
        self._record(kind, verdict, figures, promotion=promotion)
        log.info("task %s: %s", self._task.id, verdict)
        self._tracking.describe_iteration(
            self._experiment_id,
            f"Task {self._task.id}. Best run: {best.run_id}. {verdict}. "
            f"Trained tokens: {self._count_tokens():,}.",
        )
        return promotion

    def recall_verdict(self) -> Promotion:
        """Return the verdict that an earlier attempt recorded."""
        assert self._task.promotion is not None
        self._best_model = self._task.best_model
        finished = self._tracking.finished_baseline(self._experiment_id)
        self._recall_cost(finished[1] if finished else {})
        return self._task.promotion

    def carry_out(self, promotion: Promotion) -> None:
        """Move the champion if the verdict says so, then remove the older iterations."""
        self._lease.check()
        if promotion.promoted and self._best_model is not None:
            self._tracking.promote(self._line, self._best_model)
        self._lease.show(phase="clean up")
        keep, keep_models = self._settings.keep_iterations, self._settings.keep_models
        self._tracking.remove_older_iterations(self._line, self._experiment_id, keep, keep_models)
        if self._settings.keep_batches:
            self._patiently(partial(self._store.delete_older_batches, self._settings.keep_batches))

    def finish(self) -> None:
        self._lease.beat()  # the last word on progress
        self._lease.check()
        self._tracking.set_iteration_state(self._experiment_id, "done")
        claim, now = self._lease.claim, self._house.clock()
        self._patiently(partial(self._store.finish_task, claim, now, TaskStatus.DONE))

    def remove_local_copies(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)

    # -- jobs --------------------------------------------------------------------------------------

    def _run(self, job: Job[Result]) -> Result:
        """Run one job on the executor, ending it when the lease ends.

        A task that is to stop and has no model yet ends here, for there will be nothing to keep."""
        self._lease.check()
        future = self._executor.submit(job, lambda _: Verdict.CONTINUE, self._needs)
        try:
            self._first_done([future], self._stop_if_there_is_nothing_to_keep)
        except BaseException:
            self._executor.kill(future)
            wait([future])
            raise
        return future.result()

    def _stop_if_there_is_nothing_to_keep(self, job: Future[Any]) -> None:
        if not self._has_model:
            raise Stopped("stopped before any hyperparameter set had given a model")

    def _score(self, model_folder: Path, split: str) -> Scores:
        return self._run(Score(self._ref, model_folder, self._data_folder, split))

    # -- the task's history ------------------------------------------------------------------------

    def _record(
        self, kind: TaskEventKind, detail: str, data: Mapping[str, Any], **fields: Any
    ) -> None:
        """Set fields of the task and add an event to its history, in one fenced write."""
        now = self._house.clock()
        event = TaskEvent(kind, now, detail, data)
        self._patiently(partial(self._store.record, self._lease.claim, now, event=event, **fields))

    def _patiently(self, call: Callable[[], Result]) -> Result:
        """Ask the store until it answers, for as long as the lease holds."""
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                log.warning("task %s: the store does not answer: %s", self._task.id, error)
                self._lease.check()
                time.sleep(POLL_SECONDS)

    def _record_trial(
        self, kind: TaskEventKind, number: int, what: str, data: Mapping[str, Any] | None = None
    ) -> None:
        self._record(kind, f"trial {number + 1}: {what}", {"trial": number + 1, **(data or {})})
