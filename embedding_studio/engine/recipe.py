"""The best hyperparameter set trained again: once per fold of the queries, then on all of them."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_studio.engine.best import upload
from embedding_studio.engine.failures import describe, during
from embedding_studio.engine.jobs import Examine, Examined, Train, TrialResult
from embedding_studio.engine.limits import Limits
from embedding_studio.engine.promotion import decide
from embedding_studio.engine.scores import are_close, join
from embedding_studio.errors import (
    Draining,
    ExecutorUnavailable,
    LeaseLost,
    MethodError,
    StoreUnavailable,
    TrialCanceled,
)
from embedding_studio.executors.base import Report, Verdict
from embedding_studio.methods import Parameters, Scores
from embedding_studio.search import Trial
from embedding_studio.tasks import Budget, StoredModel, TaskEventKind

if TYPE_CHECKING:
    from embedding_studio.engine.attempt import Attempt
    from embedding_studio.tracking.runs import Runs


@dataclass(slots=True)
class Training:
    """The set trained on a part of the queries."""

    name: str
    #: which part is held out; None for none
    fold: int | None
    data: Path
    model: Path
    run_id: str = ""
    reports: list[Report] = field(default_factory=list)
    #: by time.monotonic()
    started: float = 0.0
    #: on validation, once it has ended
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """What it prints."""
        return self.data.parent / "output" / "output.txt"


class Recipe:
    """The best hyperparameter set of an iteration, with its seed, and the sessions to learn from.

    A training that fails costs no verdict: it is told of, and the best trial's model stands."""

    def __init__(
        self,
        attempt: "Attempt",
        experiment_id: str,
        best: Trial,
        params: Parameters,
        seed: int,
        baseline: Mapping[str, float],
    ) -> None:
        """Take the set of the best trial. baseline: the starting model's metrics on validation."""
        self._attempt = attempt
        self.experiment_id = experiment_id
        self._best = best
        self._params = params
        self._seed = seed
        self._baseline = baseline
        grace = attempt.house.settings.stop_grace_seconds
        each = Budget(max_minutes_per_trial=attempt.budget.max_minutes_per_trial)
        self._limits = Limits(each, attempt.lease, grace, 0.0)

    def folds(self) -> list[Training]:
        """Return the best trial, which has not seen the first part of the queries, and the same set
        trained without each of the others; the best trial alone where that is not asked or fails.
        """
        attempt, workspace = self._attempt, self._attempt.workspace
        attempt.house.tracking.runs.delete_trainings(self.experiment_id)
        first = Training("trial", 0, workspace.data, workspace.best)
        first.metrics = {attempt.method.main_metric: self._best.value or 0.0}
        wanted = [self._new(f"fold {n + 1} of {attempt.folds}", n) for n in range(1, attempt.folds)]
        if wanted:
            attempt.lease.show(phase="cross-fit")
        with self._costing("judged by the test queries alone"):
            return [first, *self._train(wanted)]
        return [first]

    def refit(
        self, folds: Sequence[Training], scores: Scores, by_labels: Mapping[Path, Examined]
    ) -> StoredModel | None:
        """Train the set on all queries but those of validation, and return the model once it is
        stored and found no worse than the folds' models; else None. scores: what these had on the
        queries that they did not see; by_labels: on labels that judge, by where these lie."""
        attempt, metric = self._attempt, self._attempt.method.main_metric
        attempt.lease.show(phase="refit")
        with self._costing("the best trial's model is kept"):
            (training,) = self._train([self._new("refit", None)])
            self._check(training, folds, scores, by_labels)
            value = training.metrics[metric]
            return upload(attempt, training.run_id, training.model, training.data, value)
        return None

    def _check(
        self,
        refit: Training,
        folds: Sequence[Training],
        scores: Scores,
        by_labels: Mapping[Path, Examined],
    ) -> None:
        """Raises MethodError for a model that is worse than those it follows: beyond chance on the
        queries that they did not see, or further below them on validation than they lie apart."""
        attempt, metric = self._attempt, self._attempt.method.main_metric
        method, data = attempt.workspace.method, tuple(fold.data for fold in folds)
        examined = attempt.workspace.run(Examine(method, refit.model, (*data, *by_labels)))
        own, of_labels = examined[: len(data)], examined[len(data) :]
        direction = attempt.method.direction
        sign = 1 if direction == "maximize" else -1
        for where, before, after in [
            ("of the folds", scores, join([one.scores for one in own])),
            *(
                (f"of labels {folder.name!r}", folds_own.scores, one.scores)
                for (folder, folds_own), one in zip(by_labels.items(), of_labels, strict=True)
            ),
        ]:
            both = {metric: before[metric]}, {metric: after[metric]}
            verdict = decide(metric, direction, *both, seed=0)
            if verdict.delta_ci95 and max(sign * bound for bound in verdict.delta_ci95) < 0:
                raise MethodError(
                    f"the refit has {metric} {verdict.best:.4f} on the queries {where}, on which "
                    f"the folds' own models have {verdict.baseline:.4f}"
                )
        values = sorted(sign * fold.metrics[metric] for fold in folds)
        value, lowest = sign * refit.metrics[metric], 2 * values[0] - values[-1]
        if value < lowest and not are_close(value, lowest):
            raise MethodError(
                f"the refit has {metric} {sign * value:.4f} on validation, the folds' models "
                f"{sign * values[0]:.4f} to {sign * values[-1]:.4f}"
            )

    @contextmanager
    def _costing(self, what: str) -> Iterator[None]:
        """Around trainings: one that fails costs no more than what is said."""
        tracking = self._attempt.house.tracking
        try:
            yield
        except (ExecutorUnavailable, LeaseLost, Draining, StoreUnavailable):
            raise
        except Exception as error:
            if tracking.is_outage(error):
                raise
            self._attempt.warn(f"{what}: {describe(error, self._attempt.method)}")

    def _new(self, name: str, fold: int | None) -> Training:
        folder = self._attempt.workspace.folder / name.replace(" ", "-")
        return Training(name, fold, folder / "data", folder / "model")

    def _train(self, trainings: Sequence[Training]) -> list[Training]:
        """Train them side by side where there is room. Raises what one of them raises, and
        TrialCanceled when the task is to stop."""
        attempt, workspace, runs = self._attempt, self._attempt.workspace, self._runs
        for training in trainings:
            training.data.parent.mkdir()
        workspace.run_all([attempt.feedback.job(one.data, one.fold) for one in trainings])
        slots = workspace.slots()
        waiting, running = list(trainings), dict[Future[TrialResult], Training]()
        rounds = math.ceil(len(waiting) / slots)
        attempt.lease.show(seconds_left=rounds * self._best.seconds)

        def look_after() -> None:
            if attempt.lease.is_stopping:
                raise TrialCanceled("the task is to stop")
            for future, training in running.items():
                if any(one.overdue_seconds > 0 for one in self._limits.reached(training.started)):
                    attempt.house.executor.kill(future)

        try:
            while waiting or running:
                while waiting and len(running) < slots:
                    look_after()
                    running[self._start(waiting[0])] = waiting[0]
                    del waiting[0]
                for future in workspace.first_done(running, look_after):
                    self._conclude(running[future], future)
                    del running[future]
        except BaseException as error:
            workspace.kill(running)
            if not attempt.house.tracking.is_outage(error):
                for training in trainings:
                    if training.run_id and not training.metrics:
                        runs.kill(training.run_id, repr(error))
            raise
        return list(trainings)

    @property
    def _runs(self) -> "Runs":
        return self._attempt.house.tracking.runs

    def _start(self, training: Training) -> "Future[TrialResult]":
        """Open its run, and begin to train."""
        attempt, workspace = self._attempt, self._attempt.workspace
        training.run_id = self._runs.start_training(
            self.experiment_id, training.name, self._best.run_id, self._params, self._seed
        )
        job = Train(
            method=workspace.method,
            params=self._params,
            seed=self._seed,
            data_folder=training.data,
            start_folder=workspace.start,
            model_folder=training.model,
            best=None,
            baseline=self._baseline,
        )

        def on_report(report: Report) -> Verdict:
            attempt.lease.check()
            training.reports.append(report)
            value = report.metrics[attempt.method.main_metric]
            attempt.lease.show(step=report.step, main_metric=value)
            is_late = bool(self._limits.reached(training.started))
            return Verdict.STOP if is_late else Verdict.CONTINUE

        training.started = time.monotonic()
        return attempt.house.executor.submit(job, on_report, workspace.needs, training.output)

    def _conclude(self, training: Training, future: "Future[TrialResult]") -> None:
        self._runs.log_output(training.run_id, training.output)
        with during(f"training {training.name}", training.output):
            result = future.result()
        value = result.metrics[self._attempt.method.main_metric]
        self._runs.finish_training(
            training.run_id,
            training.name,
            result.metrics,
            value,
            result.trained_tokens,
            training.reports,
        )
        training.metrics = result.metrics
        seconds = time.monotonic() - training.started
        self._attempt.record(
            TaskEventKind.TRAINED_AGAIN,
            f"{training.name}: {value:.4f} on validation, in {seconds:.1f} s",
            {
                "value": value,
                "seconds": round(seconds, 1),
                "trained_tokens": result.trained_tokens,
                "run_id": training.run_id,
            },
        )
