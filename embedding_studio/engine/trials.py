"""The trials of one iteration: side by side, until the budget is spent; the best model is kept."""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from embedding_studio.deletion import remove_tree
from embedding_studio.engine.best import Best
from embedding_studio.engine.failures import (
    PROPOSING,
    LedgerFailed,
    describe,
    trace,
    writing_to_ledger,
)
from embedding_studio.engine.jobs import Score, Train, TrialResult
from embedding_studio.engine.limits import Limits, seconds_at_work
from embedding_studio.engine.scores import Baseline, queries_of
from embedding_studio.errors import (
    AllTrialsFailed,
    ExecutorUnavailable,
    MethodError,
    TrialCanceled,
    TrialTimedOut,
)
from embedding_studio.executors.base import Report, Verdict
from embedding_studio.logs import about
from embedding_studio.methods import MetricValues
from embedding_studio.search import Outcome, Search, Trial, best_first
from embedding_studio.tasks import Pruner, RunningTrial, Sampler, StoredModel, TaskEventKind

if TYPE_CHECKING:
    from embedding_studio.engine.attempt import Attempt

log = logging.getLogger(__name__)

LOG_SECONDS = 2.0
"""A trial's reports are logged at least this far apart: who watches sees no difference."""
MOST_SHOWN = 32
"""How many points of a trial's curve are shown while it runs, and told with its end."""


@dataclass(slots=True)
class _Running:
    """A trial at work, and what is there of it but in the ledger."""

    trial: Trial
    #: as the task's progress shows it
    shown: RunningTrial
    #: for its model
    folder: Path
    #: the file of what it prints
    output: Path
    #: by time.monotonic()
    started: float
    reports: list[Report] = field(default_factory=list)
    #: how many of its reports are in the ledger, and since when, by time.monotonic()
    logged: int = 0
    logged_at: float = 0.0

    def curve(self, metric: str) -> tuple[float, ...]:
        """Return a metric of its reports, of many an even choice with the last."""
        reports = list(self.reports)  # a copy: they come from other threads
        every = max(1, math.ceil(len(reports) / MOST_SHOWN))
        return tuple(report.metrics[metric] for report in reports[::-1][::every][::-1])


class Trials:
    """The trials of one iteration, and what they found."""

    def __init__(
        self, attempt: "Attempt", experiment_id: str, seed: int, baseline: Baseline
    ) -> None:
        """Take the seed of the search; a trial's own is its number higher."""
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
        self._slots = 1
        self._is_exhausted = False
        #: those that count, of earlier attempts too, until the search is over
        self.ended: list[Trial] = []
        self._running: dict[Future[TrialResult], _Running] = {}
        self._at_work: dict[int, _Running] = {}  # by number, from before their jobs begin
        self._lock = threading.Lock()  # around them: reports come from other threads
        self._tokens = attempt.house.tracking.runs.trained_tokens(experiment_id)  # by run
        self._has_warned_of_silence = False
        self._best = Best(attempt, experiment_id)

    def run(self) -> tuple[Trial, StoredModel]:
        """Run one trial per hyperparameter set until the budget is spent; return the best one and
        its model. Raises Stopped or AllTrialsFailed if there is none."""
        self.ended += self._replay()
        self._started = len(self.ended)
        attempt, tracking = self._attempt, self._attempt.house.tracking
        grace, spent = attempt.house.settings.stop_grace_seconds, seconds_at_work(self.ended)
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
                        self._let_go(self._running[future].trial, future)
                    while self._may_start_another():
                        self._start()
                # one at a time: slots are not to wait for the ends of others; the best of them
                # first: then the rest has no model worth keeping
                future = max(done, key=self._worth)
                running = self._running.pop(future)
                with about(self._name(running.trial)):
                    last_failure = self._conclude(running, future) or last_failure
                self._show(seconds_left=self._estimate_seconds())
        except BaseException as error:
            attempt.workspace.kill(self._running)
            if not tracking.is_outage(error):  # else the next attempt does it
                for running in self._running.values():
                    tracking.runs.kill(running.trial.run_id)
            raise
        # runs whose creation was answered too late, and so asked for again
        tracking.runs.kill_unfinished(self._experiment_id)
        tracking.iterations.record_cost(self._experiment_id, self.trained_tokens)
        if self._best.model is None or self._best.trial is None:
            attempt.lease.beat()  # the last word on progress
            attempt.lease.check_stop()
            raise AllTrialsFailed(
                f"none of {self._started} hyperparameter sets gave a model; the last one: "
                f"{last_failure}. The tracebacks are in MLflow, with each failed run"
            )
        return self._best.trial, self._best.model

    @property
    def trained_tokens(self) -> int:
        """Of all trials, those of earlier attempts too, whatever became of them."""
        return sum(list(self._tokens.values()))  # a copy: reports come from other threads

    # -- before --------------------------------------------------------------------------------

    def _replay(self) -> Sequence[Trial]:
        """Tell the search what there was before; return what counts of it."""
        attempt, house, method = self._attempt, self._attempt.house, self._attempt.method
        tracking, metric, here = house.tracking, method.main_metric, self._experiment_id
        previous = tracking.iterations.previous_search(attempt.task.registered_name, here)
        finished = tracking.runs.finished_trials(here, metric)
        interrupted = [one for one in tracking.runs.trials(here) if one.outcome is None]
        superseded = tracking.runs.trials(here, "superseded")
        if finished and not any(trial.has_model for trial in finished):
            # after a cancel the best has gone, after a refit it has no model any more
            best, *_ = [*best_first([*superseded, *finished], method.direction), None]
            if best in finished:
                tracking.runs.supersede_trial(best.run_id)
                finished.remove(best)
                superseded.append(best)
        # a cancel removed their models while they were the best
        wanted = [one for one in superseded if one.outcome is Outcome.COMPLETE]

        def recall() -> list[str]:
            search, notes = self._search, list[str]()
            does_learn = house.settings.learn_from_previous
            if previous is not None and does_learn and metric in previous.baseline:
                shift = self._baseline.metrics[metric] - previous.baseline[metric]
                notes += search.learn(attempt.suggest, previous.trials, shift)
            notes += search.replay(attempt.suggest, [*finished, *interrupted])
            if method.recommended is not None:
                notes += search.recommend(
                    attempt.suggest, method.recommended, bool(attempt.task.parameters)
                )
            notes += search.enqueue(attempt.suggest, wanted)
            if previous is not None:
                best = best_first(previous.trials, method.direction)
                best = best[: house.settings.warm_start_trials]
                notes += search.enqueue(attempt.suggest, best)
            return notes

        for note in attempt.workspace.call(PROPOSING, recall, attempt.lease.check_stop):
            attempt.warn(note)
        with_model = [trial for trial in finished if trial.has_model]
        if kept := best_first(with_model, method.direction):
            model = tracking.models.stored(kept[0].run_id)
            self._best.become(kept[0], model, self._score_anew(model))
        return finished

    def _score_anew(self, model: StoredModel) -> MetricValues:
        """Return an earlier attempt's main metric per query, which the ledger does not keep."""
        attempt, workspace = self._attempt, self._attempt.workspace
        attempt.house.tracking.models.download(model, workspace.best)
        scores = workspace.run(Score(workspace.method, workspace.best, workspace.data))
        return scores[attempt.method.main_metric]

    # -- while they run ------------------------------------------------------------------------

    def _may_start_another(self) -> bool:
        """Return whether there is a free slot, something to try, and a budget left for it."""
        max_tokens = self._attempt.budget.max_trained_tokens
        busy = sum(running.trial.outcome is None for running in self._running.values())
        self._slots = self._attempt.workspace.slots()
        return (
            self._started < self._max_trials
            and not self._is_exhausted
            and not self._attempt.lease.is_stopping
            and self._limits.seconds_left > 0
            and (max_tokens is None or self.trained_tokens < max_tokens)
            and busy < self._slots
        )

    def _let_go(self, trial: Trial, future: Future[TrialResult]) -> None:
        """Tell the search at once of a trial that leaves no model to read back: its slot is free
        for the next before its end is in the ledger."""
        if trial.outcome is not None or future.exception() is not None:
            return
        result = future.result()
        if result.is_pruned:
            self._search.tell(trial, Outcome.PRUNED)
        elif self._is_comparable(result) and not self._best.is_beaten_by(trial, result.scores):
            self._search.tell(trial, Outcome.COMPLETE, self._value(result))

    def _value(self, result: TrialResult) -> float:
        return result.metrics[self._attempt.method.main_metric]

    def _worth(self, future: Future[TrialResult]) -> float:
        if future.exception() is not None or future.result().is_pruned:
            return -math.inf
        value = self._value(future.result())
        return value if self._attempt.method.direction == "maximize" else -value

    def _start(self) -> None:
        attempt, workspace = self._attempt, self._attempt.workspace
        attempt.lease.check()
        ask = partial(self._search.ask, attempt.suggest)
        proposed = workspace.call(PROPOSING, ask, self._look_after)
        if proposed is None:
            self._is_exhausted = True
            log.info("every hyperparameter set was tried")
            return
        trial, params = proposed
        seed, shown_number = self._seed + trial.number, trial.number + 1
        trial.run_id = attempt.house.tracking.runs.start_trial(
            self._experiment_id, trial, params, seed
        )
        running = _Running(
            trial,
            RunningTrial(shown_number, attempt.house.clock()),
            folder=workspace.folder / f"trial-{trial.number}",
            output=workspace.folder / f"output-{trial.number}" / "output.txt",
            started=time.monotonic(),
        )
        job = Train(
            method=workspace.method,
            params=params,
            seed=seed,
            data_folder=workspace.data,
            start_folder=workspace.start,
            model_folder=running.folder,
            best=self._best.scores,
            baseline=self._baseline.metrics,
        )
        with self._lock:
            self._at_work[trial.number] = running
        self._show(trial=shown_number, step=None, main_metric=None)

        def on_report(report: Report) -> Verdict:
            with about(self._name(trial)):
                return self._take(running, report)

        submit = attempt.house.executor.submit
        self._running[submit(job, on_report, workspace.needs, running.output)] = running
        self._started += 1

    def _name(self, trial: Trial) -> str:
        return f"task {self._attempt.task.id}, trial {trial.number + 1}"

    def _take(self, running: _Running, report: Report) -> Verdict:
        """Take a report of a trial, in one of the executor's threads; return what it is to do."""
        attempt, trial, runs = self._attempt, running.trial, self._attempt.house.tracking.runs
        attempt.lease.check()
        running.reports.append(report)
        self._note_cost(trial, report.trained_tokens)
        value, now = report.metrics[attempt.method.main_metric], time.monotonic()
        if not running.logged or now - running.logged_at >= LOG_SECONDS:
            with writing_to_ledger():
                runs.log_reports(trial.run_id, running.reports[running.logged :])
            running.logged, running.logged_at = len(running.reports), now
        with self._lock:
            curve = running.curve(attempt.method.main_metric)
            running.shown = replace(
                running.shown, step=report.step, main_metric=value, main_metrics=curve
            )
        left = self._estimate_seconds()
        self._show(
            trial=running.shown.trial, step=report.step, main_metric=value, seconds_left=left
        )
        is_hopeless = self._search.report(trial, value, report.step)
        if self._limits.reached(running.started):
            return Verdict.STOP
        return Verdict.PRUNE if is_hopeless else Verdict.CONTINUE

    def _show(self, **changes: Any) -> None:
        """Put into the task's progress where the trials stand."""
        with self._lock:
            at_work = [self._at_work[number].shown for number in sorted(self._at_work)]
            outcomes = [trial.outcome for trial in self.ended]
        self._attempt.lease.show(
            running_trials=tuple(at_work),
            finished_trials=len(outcomes),
            pruned_trials=outcomes.count(Outcome.PRUNED),
            failed_trials=outcomes.count(Outcome.FAILED),
            **changes,
        )

    def _note_cost(self, trial: Trial, trained_tokens: int) -> None:
        trial.trained_tokens = self._tokens[trial.run_id] = trained_tokens
        self._attempt.lease.show(trained_tokens=self.trained_tokens)

    def _estimate_seconds(self) -> float | None:
        """Return how long the search still takes, by how long its trials took so far; until one has
        ended, by the share of their tokens that those at work have trained. None: nothing says."""
        now = time.monotonic()
        with self._lock:
            at_work = [one for one in self._at_work.values() if one.trial.outcome is None]
        took = [trial.seconds for trial in list(self.ended)] or self._expected_seconds(at_work, now)
        if not took:
            return None
        mean = fmean(took)
        begun = [max(0.0, mean - (now - running.started)) for running in at_work]
        to_come = 0 if self._is_exhausted else (self._max_trials - self._started) * mean
        left = (sum(begun) + to_come) / self._slots
        return min(left, max(0.0, self._limits.seconds_left))

    def _expected_seconds(self, at_work: Sequence[_Running], now: float) -> list[float]:
        """Return how long trials at work take in all, by what they have trained of a trial's
        tokens."""
        whole = self._attempt.lease.progress.estimated_trained_tokens
        if whole is None:
            return []
        again = self._attempt.folds if self._attempt.folds > 1 else 0
        each = whole / (self._max_trials + again)
        return [
            (now - running.started) * max(1.0, each / running.trial.trained_tokens)
            for running in at_work
            if running.trial.trained_tokens
        ]

    def _look_after(self) -> None:
        """Tell of trials at work that do not report, and end those that go on for longer than they
        were given to come to their end."""
        for future, running in self._running.items():
            seconds = time.monotonic() - running.started
            if not running.reports and seconds > self._limits.patience_seconds:
                self._warn_of_silence(running.trial, f"has not reported for {seconds:.0f} s")
            if any(limit.overdue_seconds > 0 for limit in self._limits.reached(running.started)):
                self._attempt.house.executor.kill(future)

    def _warn_of_silence(self, trial: Trial, what: str) -> None:
        if self._has_warned_of_silence:
            return
        self._has_warned_of_silence = True
        self._attempt.warn(
            f"trial {trial.number + 1} {what}: it can be neither pruned nor stopped in "
            "time, and nobody sees how far it is. Call `run.report(scores, step)` in `train`, once "
            "per epoch, say",
            trial.run_id,
        )

    # -- after each ----------------------------------------------------------------------------

    def _conclude(self, running: _Running, future: Future[TrialResult]) -> str | None:
        """Write a trial that has ended to the ledger; return why it failed, if it did."""
        trial, model = running.trial, None
        try:
            with writing_to_ledger():
                self._attempt.house.tracking.runs.log_output(trial.run_id, running.output)
            result = future.result()
            self._note_cost(trial, result.trained_tokens)
            if not result.is_pruned:
                self._check_queries(result)
                # unsaved: it was no better than what was best as it began
                if running.folder.exists() and self._best.is_beaten_by(trial, result.scores):
                    value, look = self._value(result), self._look_after
                    model = self._best.upload(trial, running.folder, value, look)
        except ExecutorUnavailable:
            raise  # the trial's machine failed it, not its hyperparameter set
        except LedgerFailed as failed:
            raise failed.why from None
        except Exception as error:  # noqa: BLE001 - the hyperparameter set's: told with its run
            return self._fail(running, error)
        finally:
            remove_tree(running.folder, ignore_errors=True)
            remove_tree(running.output.parent, ignore_errors=True)
            with self._lock:
                del self._at_work[trial.number]
        if result.is_pruned:
            self._end(running, Outcome.PRUNED)
            curve = {"main_metrics": running.curve(self._attempt.method.main_metric)}
            self._record(TaskEventKind.TRIAL_PRUNED, trial, "pruned, it had no prospects", curve)
        else:
            self._complete(running, result)
        if model is not None:
            self._best.become(trial, model, result.scores)
        return None

    def _fail(self, running: _Running, error: Exception) -> str:
        """End a trial that gave no score; return why."""
        house, trial = self._attempt.house, running.trial
        self._attempt.lease.check()
        limits = self._limits.reached(running.started) if isinstance(error, TrialCanceled) else []
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
            self._end(running, Outcome.FAILED, failure=trace(error), why=why)
        self._record(TaskEventKind.TRIAL_FAILED, trial, why)
        return why

    def _complete(self, running: _Running, result: TrialResult) -> None:
        """End a trial that gave a score."""
        trial, metric = running.trial, self._attempt.method.main_metric
        value, seconds = self._value(result), time.monotonic() - running.started
        idle = 100 * (1 - result.seconds["train"] / seconds)
        log.info("%s %.4f in %.1f s, %.0f %% of them not training", metric, value, seconds, idle)
        phases = {**result.seconds, "wall": seconds}
        self._end(running, Outcome.COMPLETE, result.metrics, value, seconds=phases)
        self._record(
            TaskEventKind.TRIAL_FINISHED,
            trial,
            f"{metric} {value:.4f} on validation, in {seconds:.1f} s",
            {
                "value": value, "seconds": round(seconds, 1),
                "main_metrics": running.curve(metric),
            },
        )  # fmt: skip
        if not running.reports:
            self._warn_of_silence(trial, "ended and had never reported")
        self._warn_of_no_change(trial, result)

    def _is_comparable(self, result: TrialResult) -> bool:
        """Return whether a trial was scored on as many queries as the starting model."""
        return self._baseline.queries in (None, queries_of(result.scores))

    def _check_queries(self, result: TrialResult) -> None:
        """Raises MethodError for what would fail the gate, after all trials."""
        if not self._is_comparable(result):
            metric = self._attempt.method.main_metric
            raise MethodError(
                f"`evaluate` gave {queries_of(result.scores) or 'no'} values of {metric} per "
                f"query, and {self._baseline.queries} for the starting model: the gate compares "
                "query by query"
            )

    def _warn_of_no_change(self, trial: Trial, result: TrialResult) -> None:
        """Tell if the first trial that is complete scores what the starting model does."""
        is_first = all(former.outcome is not Outcome.COMPLETE for former in self.ended[:-1])
        scores = result.metrics.items()
        if is_first and all(self._baseline.metrics.get(name) == value for name, value in scores):
            self._attempt.warn(
                f"trial {trial.number + 1} scores exactly what the starting model does: "
                "does `train` return a changed model, and does `evaluate` use it?",
                trial.run_id,
            )

    def _end(
        self,
        running: _Running,
        outcome: Outcome,
        metrics: Mapping[str, float] = MappingProxyType({}),
        value: float | None = None,
        **details: Any,
    ) -> None:
        """Tell the search how a trial ended, and write it to the ledger."""
        trial, reports = running.trial, running.reports
        if trial.outcome is None:
            self._search.tell(trial, outcome, value)
        self._attempt.house.tracking.runs.finish_trial(
            trial, metrics, reports, reports[running.logged :], **details
        )
        trial.seconds = time.monotonic() - running.started
        self.ended.append(trial)

    def _record(
        self,
        kind: TaskEventKind,
        trial: Trial,
        what: str,
        data: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        number = trial.number + 1
        told = {"trial": number, "run_id": trial.run_id, "parameters": dict(trial.params), **data}
        self._attempt.record(kind, f"trial {number}: {what}", told)
