"""The trials of one iteration: side by side, until the budget is spent; the best model is kept."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from embedding_studio.deletion import remove_tree
from embedding_studio.engine.failures import (
    PROPOSING,
    LedgerFailed,
    describe,
    trace,
    writing_to_ledger,
)
from embedding_studio.engine.jobs import Train, TrialResult, are_close, mean_metrics
from embedding_studio.engine.limits import Limits, seconds_at_work
from embedding_studio.errors import (
    AllTrialsFailed,
    CorruptModel,
    ExecutorUnavailable,
    MethodError,
    TrialCanceled,
    TrialPruned,
    TrialTimedOut,
)
from embedding_studio.executors.base import Report, Verdict
from embedding_studio.logs import about
from embedding_studio.methods import Scores, is_better
from embedding_studio.search import FinishedTrial, Outcome, Proposal, Search, best_first
from embedding_studio.tasks import Pruner, RunningTrial, Sampler, StoredModel, TaskEventKind

if TYPE_CHECKING:
    from embedding_studio.engine.attempt import Attempt

log = logging.getLogger(__name__)

LOG_SECONDS = 2.0
"""A trial's reports are logged at least this far apart: who watches sees no difference."""


@dataclass(slots=True)
class Baseline:
    """How the starting model did, on the data of every trial."""

    run_id: str
    #: on the validation split
    metrics: dict[str, float]
    #: how many values the main metric had there; None for one number, or if it is not known
    queries: int | None = None
    #: None if an earlier attempt scored it
    test_scores: "Scores | None" = None


@dataclass(slots=True)
class _Trial:
    """A trial at work, from the start of its run to its end in the ledger."""

    proposal: Proposal
    run_id: str
    model_folder: Path
    #: the file of what it prints
    output: Path
    #: by time.monotonic()
    started: float
    reports: list[Report] = field(default_factory=list)
    #: how many of its reports are in the ledger, and since when, by time.monotonic()
    logged: int = 0
    logged_at: float = 0.0
    #: as last heard of
    trained_tokens: int = 0
    #: the pruner's notes, once the search was told its end
    attrs: str | None = None


class Trials:
    """The trials of one iteration, and what they found."""

    def __init__(
        self, attempt: "Attempt", experiment_id: str, seed: int, baseline: Baseline
    ) -> None:
        """seed: of the search; a trial's own is its number higher."""
        self._attempt = attempt
        self._experiment_id = experiment_id
        self._seed = seed
        self._baseline = baseline
        wanted, method = attempt.task.search, attempt.method
        self._search = Search(
            method.direction,
            seed,
            wanted.sampler or Sampler(method.sampler),
            wanted.pruner or Pruner(method.pruner),
        )
        self._max_trials = attempt.budget.max_trials or 1
        self._started = 0
        self._is_exhausted = False
        self._running: dict[Future[TrialResult], _Trial] = {}
        self._at_work: dict[int, RunningTrial] = {}  # by number
        self._lock = threading.Lock()  # around them: reports come from other threads
        self._finished: list[FinishedTrial] = []  # those of earlier attempts too
        self._tokens = attempt.house.tracking.runs.trained_tokens(experiment_id)  # by run
        self._has_warned_of_silence = False
        self._best_value: float | None = None
        self._best_model: StoredModel | None = None

    def run(self) -> StoredModel:
        """Run one trial per hyperparameter set until the budget is spent; return the best model.

        Raises Stopped or AllTrialsFailed if there is none.
        """
        self._finished += self._replay()
        self._started = len(self._finished)
        attempt, tracking = self._attempt, self._attempt.house.tracking
        grace, spent = attempt.house.settings.stop_grace_seconds, seconds_at_work(self._finished)
        self._limits = Limits(attempt.budget, attempt.lease, grace, spent)
        attempt.lease.show(phase="search", max_trials=self._max_trials)
        self._show()
        last_failure = "the budget was spent before one could finish"
        try:
            while True:
                while self._may_start_another():
                    self._start()
                if not self._running:
                    break
                done = attempt.workspace.first_done(self._running, self._look_after)
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
            attempt.workspace.kill(self._running)
            if not tracking.is_outage(error):  # else the next attempt does it
                for trial in self._running.values():
                    tracking.runs.kill(trial.run_id)
            raise
        # runs whose creation was answered too late, and so asked for again
        tracking.runs.kill_unfinished(self._experiment_id)
        tracking.iterations.record_cost(self._experiment_id, self.trained_tokens)
        if self._best_model is None:
            attempt.lease.beat()  # the last word on progress
            attempt.lease.check_stop()
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
        house, method = self._attempt.house, self._attempt.method
        tracking, settings, metric = house.tracking, house.settings, method.main_metric
        name = self._attempt.task.registered_name
        previous = tracking.iterations.previous_search(name, self._experiment_id)
        if previous is not None and settings.learn_from_previous and metric in previous.baseline:
            shift = self._baseline.metrics[metric] - previous.baseline[metric]
            self._search.learn(previous.trials, shift)
        finished = tracking.runs.finished_trials(self._experiment_id, metric)
        self._search.replay(finished, tracking.runs.interrupted_trials(self._experiment_id))
        self._search.enqueue(tracking.runs.sets_without_model(self._experiment_id))
        if previous is not None:
            best = best_first(previous.trials, method.direction)[: settings.warm_start_trials]
            self._search.enqueue(trial.suggested for trial in best)
        with_model = [trial for trial in finished if trial.has_model]
        if kept := best_first(with_model, method.direction):
            self._adopt_best(kept[0].value, tracking.models.stored(kept[0].run_id))
        return finished

    # -- while they run ------------------------------------------------------------------------

    def _may_start_another(self) -> bool:
        """Return whether there is a free slot, something to try, and a budget left for it."""
        max_tokens = self._attempt.budget.max_trained_tokens
        return (
            self._started < self._max_trials
            and not self._is_exhausted
            and not self._attempt.lease.is_stopping
            and self._limits.seconds_left > 0
            and (max_tokens is None or self.trained_tokens < max_tokens)
            and self._count_busy() < self._attempt.workspace.slots()
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
        value = None if error else future.result().metrics[self._attempt.method.main_metric]
        if value is None or not is_better(self._attempt.method.direction, value, self._best_value):
            self._tell(trial, Outcome.PRUNED if error else Outcome.COMPLETE, value)

    def _worth(self, future: Future[TrialResult]) -> float:
        if future.exception() is not None:
            return -math.inf
        value = future.result().metrics[self._attempt.method.main_metric]
        return value if self._attempt.method.direction == "maximize" else -value

    def _tell(self, trial: _Trial, outcome: Outcome, value: float | None) -> None:
        trial.attrs = self._search.tell(trial.proposal.number, outcome, value)

    def _start(self) -> None:
        self._attempt.lease.check()
        attempt, workspace = self._attempt, self._attempt.workspace
        ask = partial(self._search.ask, attempt.method.suggest)
        proposal = workspace.call(PROPOSING, ask, self._look_after)
        for note in self._search.take_notes():
            attempt.warn(note)
        if proposal is None:
            self._is_exhausted = True
            log.info("every hyperparameter set was tried")
            return
        seed = self._seed + proposal.number
        run_id = attempt.house.tracking.runs.start_trial(self._experiment_id, proposal, seed)
        folder = workspace.folder / f"trial-{proposal.number}"
        output = workspace.folder / f"output-{proposal.number}" / "output.txt"
        trial = _Trial(proposal, run_id, folder, output, time.monotonic())
        job = Train(
            method=workspace.method,
            params=proposal.params,
            seed=seed,
            data_folder=workspace.data,
            start_folder=workspace.start,
            model_folder=folder,
            best_value=self._best_value,
            baseline=self._baseline.metrics,
        )
        with self._lock:
            self._at_work[proposal.number] = RunningTrial(
                proposal.number + 1, attempt.house.clock()
            )
        self._show(trial=proposal.number + 1, step=None, main_metric=None)
        submit = attempt.house.executor.submit
        future = submit(job, self._listen_to(trial), workspace.needs, output)
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
        self._attempt.lease.check()
        trial.reports.append(report)
        self._note_cost(trial, report.trained_tokens)
        number, value = trial.proposal.number, report.metrics[self._attempt.method.main_metric]
        now = time.monotonic()
        if not trial.logged or now - trial.logged_at >= LOG_SECONDS:
            with writing_to_ledger():
                self._attempt.house.tracking.runs.log_reports(
                    trial.run_id, trial.reports[trial.logged :]
                )
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
        self._attempt.lease.show(
            running_trials=at_work,
            finished_trials=len(outcomes),
            pruned_trials=outcomes.count(Outcome.PRUNED),
            failed_trials=outcomes.count(Outcome.FAILED),
            **changes,
        )

    def _note_cost(self, trial: _Trial, trained_tokens: int) -> None:
        trial.trained_tokens = self._tokens[trial.run_id] = trained_tokens
        self._attempt.lease.show(trained_tokens=self.trained_tokens)

    def _estimate_seconds(self) -> float | None:
        """Return how long the search still takes, by how long its trials took so far."""
        if not self._finished:
            return None
        now, mean = time.monotonic(), fmean(trial.seconds for trial in self._finished)
        begun = [max(0.0, mean - (now - trial.started)) for trial in self._running.values()]
        to_come = 0 if self._is_exhausted else (self._max_trials - self._started) * mean
        left = (sum(begun) + to_come) / self._attempt.workspace.slots()
        return min(left, max(0.0, self._limits.seconds_left))

    def _look_after(self) -> None:
        """Tell of trials at work that do not report, and end those that go on for longer than they
        were given to come to their end."""
        for future, trial in self._running.items():
            seconds = time.monotonic() - trial.started
            if not trial.reports and seconds > self._limits.patience_seconds:
                self._warn_of_silence(trial, f"has not reported for {seconds:.0f} s")
            if any(limit.overdue_seconds > 0 for limit in self._limits.reached(trial.started)):
                self._attempt.house.executor.kill(future)

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
        model = None
        try:
            with writing_to_ledger():
                self._attempt.house.tracking.runs.log_output(trial.run_id, trial.output)
            result = future.result()
            self._note_cost(trial, result.trained_tokens)
            value = result.metrics[self._attempt.method.main_metric]
            self._check_queries(result)
            if is_better(self._attempt.method.direction, value, self._best_value):
                model = self._upload(trial, result)
        except TrialPruned:
            self._end(trial, Outcome.PRUNED)
            self._record(TaskEventKind.TRIAL_PRUNED, number, "pruned, it had no prospects")
            return None
        except ExecutorUnavailable:
            raise  # the trial's machine failed it, not its hyperparameter set
        except LedgerFailed as failed:
            raise failed.why from None
        except Exception as error:  # noqa: BLE001 - the hyperparameter set's: told with its run
            return self._fail(trial, error)
        finally:
            remove_tree(trial.model_folder, ignore_errors=True)
            remove_tree(trial.output.parent, ignore_errors=True)
            with self._lock:
                del self._at_work[number]
        self._complete(trial, result, model)
        return None

    def _fail(self, trial: _Trial, error: Exception) -> str:
        """End a trial that gave no score; return why."""
        house = self._attempt.house
        self._attempt.lease.check()
        limits = self._limits.reached(trial.started) if isinstance(error, TrialCanceled) else []
        if limits:
            limit = max(limits, key=lambda limit: limit.overdue_seconds)
            kind = TrialTimedOut if limit.is_own else TrialCanceled
            error = kind(f"{error}, {limit.seconds_ago:.0f} s after {limit.name}")
        why = describe(error, self._attempt.method)
        if limits and not limit.is_own:
            house.tracking.runs.kill(trial.run_id, why)
        else:
            log.warning("%s", why)
            house.tracking.models.delete(trial.run_id)
            self._end(trial, Outcome.FAILED, failure=trace(error), why=why)
        self._record(TaskEventKind.TRIAL_FAILED, trial.proposal.number, why)
        return why

    def _complete(self, trial: _Trial, result: TrialResult, model: StoredModel | None) -> None:
        """End a trial that gave a score; model: what it uploaded, if it beats the best."""
        metric = self._attempt.method.main_metric
        value, seconds = result.metrics[metric], time.monotonic() - trial.started
        idle = 1 - result.seconds["train"] / seconds
        log.info(
            "%s %.4f in %.1f s, %.0f %% of them not training", metric, value, seconds, 100 * idle
        )
        phases = {**result.seconds, "wall": seconds}
        self._end(trial, Outcome.COMPLETE, result.metrics, value, seconds=phases)
        self._record(
            TaskEventKind.TRIAL_FINISHED,
            trial.proposal.number,
            f"{metric} {value:.4f} on validation, in {seconds:.1f} s",
            {"value": value, "seconds": round(seconds, 1), "run_id": trial.run_id},
        )
        if not trial.reports:
            self._warn_of_silence(trial, "ended and had never reported")
        self._warn_of_no_change(trial, result)
        if model is not None:
            self._adopt_best(value, model)

    def _is_comparable(self, result: TrialResult) -> bool:
        """Return whether a trial was scored on as many queries as the starting model."""
        return self._baseline.queries in (None, result.queries)

    def _check_queries(self, result: TrialResult) -> None:
        """Raises MethodError for what would fail the gate, after all trials."""
        if not self._is_comparable(result):
            metric = self._attempt.method.main_metric
            raise MethodError(
                f"`evaluate` gave {result.queries or 'no'} values of {metric} per query, and "
                f"{self._baseline.queries} for the starting model: the gate compares query by query"
            )

    def _warn_of_no_change(self, trial: _Trial, result: TrialResult) -> None:
        """Tell if the first trial that is complete scores what the starting model does."""
        is_first = all(former.outcome is not Outcome.COMPLETE for former in self._finished[:-1])
        scores = result.metrics.items()
        if is_first and all(self._baseline.metrics.get(name) == value for name, value in scores):
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
        self._attempt.house.tracking.runs.finish(
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
        metric = self._attempt.method.main_metric
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
        metric = self._attempt.method.main_metric
        with writing_to_ledger():
            model = self._attempt.house.tracking.models.upload(trial.run_id, trial.model_folder)
        self._attempt.lease.has_model = True
        copy = self._attempt.workspace.folder / f"copy-{trial.proposal.number}"
        with writing_to_ledger():
            self._attempt.house.tracking.models.download(model, copy)
        scores = self._attempt.workspace.score(copy, "validation", self._look_after)
        read_back = mean_metrics(scores, metric)[metric]
        if not are_close(result.metrics[metric], read_back):
            raise CorruptModel(
                f"the model of run {trial.run_id} scored {result.metrics[metric]:.6f} before it "
                f"was saved and {read_back:.6f} after it was loaded back: does `save` write all?"
            )
        with writing_to_ledger():
            self._attempt.house.tracking.models.confirm(model)
        remove_tree(self._attempt.workspace.best, ignore_errors=True)
        copy.rename(self._attempt.workspace.best)
        return model

    def _adopt_best(self, value: float | None, model: StoredModel) -> None:
        """Make a stored model the best so far; only now may the former best's files go."""
        attempt = self._attempt
        self._best_value, self._best_model = value, model
        attempt.lease.check()
        # of this experiment, one may have been champion and rolled back, if the task was restarted
        find, method = attempt.house.store.models.find, attempt.task.fine_tuning_method
        registered = attempt.lease.patiently(find, method)
        kept = registered.kept_run_ids if registered else ()
        attempt.house.tracking.runs.keep_best(self._experiment_id, model.run_id, kept)
        attempt.record(
            TaskEventKind.BEST_MODEL_STORED,
            f"the best model so far is that of run {model.run_id}",
            {"run_id": model.run_id, "value": value},
            best_model=model,
        )
        self._attempt.lease.show(best_so_far=value)

    def _record(
        self, kind: TaskEventKind, number: int, what: str, data: Mapping[str, Any] | None = None
    ) -> None:
        named = {"trial": number + 1, **(data or {})}
        self._attempt.record(kind, f"trial {number + 1}: {what}", named)
