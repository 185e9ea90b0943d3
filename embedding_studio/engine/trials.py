"""The trials of one iteration: side by side, until the budget is spent; the best model is kept."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from embedding_studio.deletion import remove_tree
from embedding_studio.engine.attempt import Attempt
from embedding_studio.engine.failures import PROPOSING, describe, trace
from embedding_studio.engine.jobs import Train, TrialResult, are_close, mean_metrics
from embedding_studio.errors import (
    AllTrialsFailed,
    CorruptModel,
    ExecutorUnavailable,
    MethodError,
    Stopped,
    TrialCanceled,
    TrialPruned,
    TrialTimedOut,
)
from embedding_studio.executors.base import Report, Verdict
from embedding_studio.limits import Limits, seconds_at_work
from embedding_studio.logs import about
from embedding_studio.methods import is_better
from embedding_studio.search import FinishedTrial, Outcome, Proposal, Search, best_first
from embedding_studio.tasks import Pruner, RunningTrial, Sampler, StoredModel, TaskEventKind

log = logging.getLogger(__name__)

LOG_SECONDS = 2.0
"""A trial's reports are logged at least this far apart: who watches sees no difference."""


@dataclass
class _Trial:
    """A trial at work, from the start of its run to its end in the ledger.

    output: the file of what it prints. started, logged_at: time.monotonic(). logged: how many
    of its reports are in the ledger.
    trained_tokens: as last heard of. attrs: the pruner's notes, once the search was told its end.
    ledger_error: what kept MLflow from being written to.
    """

    proposal: Proposal
    run_id: str
    model_folder: Path
    output: Path
    started: float
    reports: list[Report] = field(default_factory=list)
    logged: int = 0
    logged_at: float = 0.0
    trained_tokens: int = 0
    attrs: str | None = None
    ledger_error: Exception | None = None

    @contextmanager
    def writes_to_ledger(self) -> Iterator[None]:
        """Around calls to MLflow: their failure is the task's, not the hyperparameter set's."""
        try:
            yield
        except Exception as error:
            self.ledger_error = error
            raise


class Trials:
    """The trials of one iteration, and what they found.

    baseline: the starting model's validation metrics; queries: how many values its main metric
    had, None if that is not known. seed: of the search; a trial's own is its number higher.
    """

    def __init__(
        self,
        attempt: Attempt,
        experiment_id: str,
        seed: int,
        baseline: Mapping[str, float],
        queries: int | None = None,
    ) -> None:
        self._attempt = attempt
        self._tracking = attempt.tracking
        self._lease = attempt.lease
        self._method = attempt.method
        self._experiment_id = experiment_id
        self._seed = seed
        self._baseline = baseline
        self._queries = queries
        wanted = attempt.task.search
        self._search = Search(
            attempt.method.direction,
            seed,
            wanted.sampler or Sampler(attempt.method.sampler),
            wanted.pruner or Pruner(attempt.method.pruner),
        )
        self._budget = attempt.budget
        self._max_trials = self._budget.max_trials or 1
        self._started = 0
        self._is_exhausted = False
        self._running: dict[Future[TrialResult], _Trial] = {}
        self._at_work: dict[int, RunningTrial] = {}  # by number
        self._lock = threading.Lock()  # around them: reports come from other threads
        self._finished: list[FinishedTrial] = []  # those of earlier attempts too
        self._tokens = attempt.tracking.trained_tokens(experiment_id)  # by run
        self._has_warned_of_silence = False
        self._best_value: float | None = None
        self._best_model: StoredModel | None = None

    def run(self) -> StoredModel:
        """Run one trial per hyperparameter set until the budget is spent; return the best model.

        Raises Stopped or AllTrialsFailed if there is none.
        """
        self._finished += self._replay()
        self._started = len(self._finished)
        grace, spent = self._attempt.settings.stop_grace_seconds, seconds_at_work(self._finished)
        self._limits = Limits(self._budget, self._lease, grace, spent)
        self._lease.show(phase="search", max_trials=self._max_trials)
        self._show()
        last_failure = "the budget was spent before one could finish"
        try:
            while True:
                while self._may_start_another():
                    self._start()
                if not self._running:
                    break
                done = self._attempt.first_done(self._running, self._look_after)
                if len(self._running) > 1:
                    for future in done:
                        self._let_go(self._running[future], future)
                    while self._may_start_another():
                        self._start()
                # one at a time: slots are not to wait for the ends of others; the best of them
                # first: then the rest has no model worth keeping
                future = max(done, key=self._worth)
                trial = self._running.pop(future)
                with about(self._name(trial)):
                    last_failure = self._conclude(trial, future) or last_failure
                self._show(seconds_left=self._estimate_seconds())
        except BaseException as error:
            for future in self._running:
                self._attempt.executor.kill(future)
            wait(self._running)
            if not self._tracking.is_outage(error):  # else the next attempt does it
                for trial in self._running.values():
                    self._tracking.kill_run(trial.run_id)
            raise
        # runs whose creation was answered too late, and so asked for again
        self._tracking.kill_unfinished(self._experiment_id)
        self._tracking.record_cost(self._experiment_id, self.trained_tokens)
        if self._best_model is None:
            self._lease.beat()  # the last word on progress
            if self._lease.is_stopping:
                raise Stopped("stopped before any hyperparameter set had given a model")
            raise AllTrialsFailed(
                f"none of {self._started} hyperparameter sets gave a model; the last one: "
                f"{last_failure}. The tracebacks are in MLflow, with each failed run"
            )
        return self._best_model

    @property
    def trained_tokens(self) -> int:
        """Of all trials, those of earlier attempts too, whatever became of them."""
        return sum(list(self._tokens.values()))  # a copy: reports come from other threads

    @property
    def finished(self) -> Sequence[FinishedTrial]:
        """Those that count, in the order of their numbers."""
        return sorted(self._finished, key=lambda trial: trial.planned.number)

    # -- before --------------------------------------------------------------------------------

    def _replay(self) -> Sequence[FinishedTrial]:
        tracking, metric, direction = (
            self._tracking,
            self._method.main_metric,
            self._method.direction,
        )
        settings = self._attempt.settings
        previous = tracking.previous_search(self._attempt.task.registered_name, self._experiment_id)
        if previous is not None and settings.learn_from_previous and metric in previous.baseline:
            shift = self._baseline[metric] - previous.baseline[metric]
            self._search.learn(previous.trials, shift)
        finished = tracking.finished_trials(self._experiment_id, metric)
        self._search.replay(finished, tracking.interrupted_trials(self._experiment_id))
        self._search.enqueue(tracking.sets_without_model(self._experiment_id))
        if previous is not None:
            best = best_first(previous.trials, direction)[: settings.warm_start_trials]
            self._search.enqueue(trial.suggested for trial in best)
        with_model = [trial for trial in finished if trial.has_model]
        if kept := best_first(with_model, direction):
            self._adopt_best(kept[0].value, tracking.stored_model(kept[0].run_id))
        return finished

    # -- while they run ------------------------------------------------------------------------

    def _may_start_another(self) -> bool:
        """Return whether there is a free slot, something to try, and a budget left for it."""
        max_tokens = self._budget.max_trained_tokens
        return (
            self._started < self._max_trials
            and not self._is_exhausted
            and not self._lease.is_stopping
            and self._limits.seconds_left > 0
            and (max_tokens is None or self.trained_tokens < max_tokens)
            and self._count_busy() < self._attempt.executor.slots(self._attempt.needs)
        )

    def _count_busy(self) -> int:
        return sum(trial.attrs is None for trial in self._running.values())

    def _let_go(self, trial: _Trial, future: Future[TrialResult]) -> None:
        """Tell the search at once of a trial that leaves no model to read back: its slot is free
        for the next before its end is in the ledger."""
        error = future.exception()
        if trial.attrs is not None or not (error is None or isinstance(error, TrialPruned)):
            return
        if error is None and not self._is_comparable(future.result()):
            return
        value = None if error else future.result().metrics[self._method.main_metric]
        if value is None or not is_better(self._method.direction, value, self._best_value):
            self._tell(trial, Outcome.PRUNED if error else Outcome.COMPLETE, value)

    def _worth(self, future: Future[TrialResult]) -> float:
        if future.exception() is not None:
            return -math.inf
        value = future.result().metrics[self._method.main_metric]
        return value if self._method.direction == "maximize" else -value

    def _tell(self, trial: _Trial, outcome: Outcome, value: float | None) -> None:
        trial.attrs = self._search.tell(trial.proposal.number, outcome, value)

    def _start(self) -> None:
        self._lease.check()
        attempt = self._attempt
        ask = partial(self._search.ask, self._method.suggest)
        proposal = attempt.call(PROPOSING, ask, self._look_after)
        for note in self._search.take_notes():
            attempt.warn(note)
        if proposal is None:
            self._is_exhausted = True
            log.info("every hyperparameter set was tried")
            return
        seed = self._seed + proposal.number
        run_id = self._tracking.start_trial(self._experiment_id, proposal, seed)
        folder = attempt.work / f"trial-{proposal.number}"
        output = attempt.work / f"output-{proposal.number}" / "output.txt"
        trial = _Trial(proposal, run_id, folder, output, time.monotonic())
        job = Train(
            method=attempt.ref,
            params=proposal.params,
            seed=seed,
            data_folder=attempt.data_folder,
            start_folder=attempt.start_folder,
            model_folder=folder,
            best_value=self._best_value,
            baseline=self._baseline,
        )
        with self._lock:
            self._at_work[proposal.number] = RunningTrial(proposal.number + 1, attempt.clock())
        self._show(trial=proposal.number + 1, step=None, main_metric=None)
        future = attempt.executor.submit(job, self._listen_to(trial), attempt.needs, output)
        self._running[future] = trial
        self._started += 1

    def _listen_to(self, trial: _Trial) -> Callable[[Report], Verdict]:
        def on_report(report: Report) -> Verdict:
            with about(self._name(trial)):
                return self._take(trial, report)

        return on_report

    def _name(self, trial: _Trial) -> str:
        return f"task {self._attempt.task.id}, trial {trial.proposal.number + 1}"

    def _take(self, trial: _Trial, report: Report) -> Verdict:
        self._lease.check()
        trial.reports.append(report)
        self._note_cost(trial, report.trained_tokens)
        number, value = trial.proposal.number, report.metrics[self._method.main_metric]
        now = time.monotonic()
        if not trial.logged or now - trial.logged_at >= LOG_SECONDS:
            with trial.writes_to_ledger():
                self._tracking.log_reports(trial.run_id, trial.reports[trial.logged :])
            trial.logged, trial.logged_at = len(trial.reports), now
        with self._lock:
            shown = replace(self._at_work[number], step=report.step, main_metric=value)
            self._at_work[number] = shown
        self._show(trial=number + 1, step=report.step, main_metric=value)
        is_hopeless = self._search.report(number, value, report.step)
        if self._limits.reached(trial.started):
            return Verdict.STOP
        return Verdict.PRUNE if is_hopeless else Verdict.CONTINUE

    def _show(self, **changes: Any) -> None:
        """Put into the task's progress where the trials stand."""
        with self._lock:
            at_work = tuple(self._at_work[number] for number in sorted(self._at_work))
            outcomes = [trial.outcome for trial in self._finished]
        self._lease.show(
            running_trials=at_work,
            finished_trials=len(outcomes),
            pruned_trials=outcomes.count(Outcome.PRUNED),
            failed_trials=outcomes.count(Outcome.FAILED),
            **changes,
        )

    def _note_cost(self, trial: _Trial, trained_tokens: int) -> None:
        trial.trained_tokens = self._tokens[trial.run_id] = trained_tokens
        self._lease.show(trained_tokens=self.trained_tokens)

    def _estimate_seconds(self) -> float | None:
        """Return how long the search still takes, by how long its trials took so far."""
        if not self._finished:
            return None
        now, mean = time.monotonic(), fmean(trial.seconds for trial in self._finished)
        begun = [max(0.0, mean - (now - trial.started)) for trial in self._running.values()]
        to_come = 0 if self._is_exhausted else (self._max_trials - self._started) * mean
        left = (sum(begun) + to_come) / self._attempt.executor.slots(self._attempt.needs)
        return min(left, max(0.0, self._limits.seconds_left))

    def _look_after(self) -> None:
        """Tell of trials at work that do not report, and end those that go on for longer than they
        were given to come to their end."""
        for future, trial in self._running.items():
            seconds = time.monotonic() - trial.started
            if not trial.reports and seconds > self._limits.patience_seconds:
                self._warn_of_silence(trial, f"has not reported for {seconds:.0f} s")
            if any(limit.overdue_seconds > 0 for limit in self._limits.reached(trial.started)):
                self._attempt.executor.kill(future)

    def _warn_of_silence(self, trial: _Trial, what: str) -> None:
        if self._has_warned_of_silence:
            return
        self._has_warned_of_silence = True
        self._attempt.warn(
            f"trial {trial.proposal.number + 1} {what}: it can be neither pruned nor stopped in "
            "time, and nobody sees how far it is. Call `run.report(scores, step)` in `train`, once "
            "per epoch, say",
            trial.run_id,
        )

    # -- after each ----------------------------------------------------------------------------

    def _conclude(self, trial: _Trial, future: Future[TrialResult]) -> str | None:
        """Write a finished trial to the ledger; return why it failed, if it did."""
        number = trial.proposal.number
        model, value = None, None
        try:
            with trial.writes_to_ledger():
                self._tracking.log_output(trial.run_id, trial.output)
            result = future.result()
            self._note_cost(trial, result.trained_tokens)
            value = result.metrics[self._method.main_metric]
            self._check_queries(result)
            if is_better(self._method.direction, value, self._best_value):
                model = self._upload(trial, result)
        except TrialPruned:
            self._end(trial, Outcome.PRUNED)
            self._record(TaskEventKind.TRIAL_PRUNED, number, "pruned, it had no prospects")
            return None
        except ExecutorUnavailable:
            raise  # the trial's machine failed it, not its hyperparameter set
        except Exception as error:
            if error is trial.ledger_error:
                raise  # the ledger's failure, not the hyperparameter set's
            self._lease.check()
            limits = self._limits.reached(trial.started) if isinstance(error, TrialCanceled) else []
            if limits:
                limit = max(limits, key=lambda limit: limit.overdue_seconds)
                kind = TrialTimedOut if limit.is_own else TrialCanceled
                error = kind(f"{error}, {limit.seconds_ago:.0f} s after {limit.name}")
            why = describe(error, self._method)
            if limits and not limit.is_own:
                self._tracking.kill_run(trial.run_id, why)
            else:
                log.warning("%s", why)
                self._tracking.delete_model(trial.run_id)
                self._end(trial, Outcome.FAILED, failure=trace(error), why=why)
            self._record(TaskEventKind.TRIAL_FAILED, number, why)
            return why
        finally:
            remove_tree(trial.model_folder, ignore_errors=True)
            remove_tree(trial.output.parent, ignore_errors=True)
            with self._lock:
                del self._at_work[number]
        wall_seconds = time.monotonic() - trial.started
        log.info(
            "%s %.4f in %.1f s, %.0f %% of them not training",
            self._method.main_metric, value, wall_seconds,
            100 * (1 - result.seconds["train"] / wall_seconds),
        )  # fmt: skip
        phases = {**result.seconds, "wall": wall_seconds}
        self._end(trial, Outcome.COMPLETE, result.metrics, value, seconds=phases)
        self._record(
            TaskEventKind.TRIAL_FINISHED,
            number,
            f"{self._method.main_metric} {value:.4f} on validation, in {wall_seconds:.1f} s",
            {"value": value, "seconds": round(wall_seconds, 1), "run_id": trial.run_id},
        )
        if not trial.reports:
            self._warn_of_silence(trial, "ended and had never reported")
        self._warn_of_no_change(trial, result)
        if model is not None:
            self._adopt_best(value, model)
        return None

    def _is_comparable(self, result: TrialResult) -> bool:
        """Return whether a trial was scored on as many queries as the starting model."""
        return self._queries is None or result.queries == self._queries

    def _check_queries(self, result: TrialResult) -> None:
        """Raises MethodError for what would fail the gate, after all trials."""
        if not self._is_comparable(result):
            metric = self._method.main_metric
            raise MethodError(
                f"`evaluate` gave {result.queries or 'no'} values of {metric} per query, and "
                f"{self._queries} for the starting model: the gate compares query by query"
            )

    def _warn_of_no_change(self, trial: _Trial, result: TrialResult) -> None:
        """Tell if the first trial that is complete scores what the starting model does."""
        is_first = all(former.outcome is not Outcome.COMPLETE for former in self._finished[:-1])
        scores = result.metrics.items()
        if is_first and all(self._baseline.get(name) == value for name, value in scores):
            self._attempt.warn(
                f"trial {trial.proposal.number + 1} scores exactly what the starting model does: "
                "does `train` return a changed model, and does `evaluate` use it?",
                trial.run_id,
            )

    def _end(
        self,
        trial: _Trial,
        outcome: Outcome,
        metrics: Mapping[str, float] | None = None,
        value: float | None = None,
        **details: Any,
    ) -> None:
        """Tell the search how a trial ended, and write it to the ledger."""
        if trial.attrs is None:
            self._tell(trial, outcome, value)
        self._tracking.finish_run(
            trial.run_id,
            metrics or {},
            trial.reports,
            trial.reports[trial.logged :],
            outcome=outcome,
            value=value,
            trained_tokens=trial.trained_tokens,
            attrs=trial.attrs,
            number=trial.proposal.number + 1,
            **details,
        )
        metric = self._method.main_metric
        self._finished.append(
            FinishedTrial(
                trial.run_id,
                trial.proposal.planned,
                outcome,
                value,
                {report.step: report.metrics[metric] for report in trial.reports},
                seconds=time.monotonic() - trial.started,
            )
        )

    def _upload(self, trial: _Trial, result: TrialResult) -> StoredModel:
        """Upload a model, then load it back and score it: only then may it replace the best.

        Raises CorruptModel when the model read back does not score what the trial scored.
        """
        metric = self._method.main_metric
        with trial.writes_to_ledger():
            model = self._tracking.upload_model(trial.run_id, trial.model_folder)
        self._attempt.has_model = True
        copy = self._attempt.work / f"copy-{trial.proposal.number}"
        with trial.writes_to_ledger():
            self._tracking.download_model(model, copy)
        scores = self._attempt.score(copy, "validation", self._look_after)
        read_back = mean_metrics(scores, metric)[metric]
        if not are_close(result.metrics[metric], read_back):
            raise CorruptModel(
                f"the model of run {trial.run_id} scored {result.metrics[metric]:.6f} before it "
                f"was saved and {read_back:.6f} after it was loaded back: does `save` write all?"
            )
        with trial.writes_to_ledger():
            self._tracking.confirm_model(model)
        remove_tree(self._attempt.best_folder, ignore_errors=True)
        copy.rename(self._attempt.best_folder)
        return model

    def _adopt_best(self, value: float | None, model: StoredModel) -> None:
        """Make a stored model the best so far; only now may the former best's files go."""
        self._best_value, self._best_model = value, model
        self._lease.check()
        # of this experiment, one may have been champion and rolled back, if the task was restarted
        self._tracking.keep_best(self._experiment_id, model.run_id, self._attempt.kept_run_ids())
        self._attempt.record(
            TaskEventKind.BEST_MODEL_STORED,
            f"the best model so far is that of run {model.run_id}",
            {"run_id": model.run_id, "value": value},
            best_model=model,
        )
        self._lease.show(best_so_far=value)

    def _record(
        self, kind: TaskEventKind, number: int, what: str, data: Mapping[str, Any] | None = None
    ) -> None:
        named = {"trial": number + 1, **(data or {})}
        self._attempt.record(kind, f"trial {number + 1}: {what}", named)
