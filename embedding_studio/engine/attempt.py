"""One task's way from clicks to a promoted model, or none. Read `run_iteration` first."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_studio.clickstream import SessionBatch
from embedding_studio.deletion import remove_tree
from embedding_studio.engine.champions import Champions
from embedding_studio.engine.failures import PROPOSING
from embedding_studio.engine.feedback import Data, Feedback
from embedding_studio.engine.house import House
from embedding_studio.engine.jobs import (
    BaselineResult,
    DrawSearch,
    Examine,
    Examined,
    SaveInitialModel,
    ScoreBaseline,
)
from embedding_studio.engine.lease import POLL_SECONDS, Lease
from embedding_studio.engine.promotion import (
    as_csv,
    averaged,
    compare,
    decide,
    guard,
    most_changed,
    queries_page,
    query_changes,
    sessions_needed,
)
from embedding_studio.engine.recipe import Recipe
from embedding_studio.engine.scores import Baseline, finite_means, join
from embedding_studio.engine.trials import Trials
from embedding_studio.engine.workspace import Workspace
from embedding_studio.errors import (
    Conflict,
    CorruptModel,
    Draining,
    ExecutorUnavailable,
    InvalidInput,
    LeaseLost,
    NotFound,
)
from embedding_studio.methods import AnyMethod, Parameters, Scores
from embedding_studio.models import RegisteredModel, Training
from embedding_studio.search import Trial, check_names, draw_again, draw_sets, narrow
from embedding_studio.tasks import (
    FineTuningTask,
    Promote,
    Promotion,
    ServedModel,
    StoredModel,
    TaskEvent,
    TaskEventKind,
    TaskStatus,
)
from embedding_studio.tracking import story
from embedding_studio.tracking.reader import QUERIES_PAGE

if TYPE_CHECKING:
    from embedding_studio.tracking.iterations import OlderIteration

log = logging.getLogger(__name__)

SEEDS_PER_GENERATION = 100_000
ESTIMATE_FROM_SETS = 16
CHECK_SETS = 100
"""Among so many sets drawn at random a hyperparameter is looked for, be it asked for seldom."""
ESTIMATE = "estimated_trained_tokens"


def run_iteration(house: House, task: FineTuningTask, lease: Lease, method: AnyMethod) -> None:
    """Execute a claimed task to its end, from wherever an earlier attempt left it.

    A task that is to stop ends with the best model so far, and Stopped is raised if there is none.
    Raises LeaseLost or Draining when the task is no longer to be worked on, IterationError and
    MethodError when it cannot succeed; the caller ends the task accordingly."""
    for number in range(1, task.attempt + 1):  # a later one may be at work while we slept
        remove_tree(house.settings.work_folder / f"{task.id}-{number}", ignore_errors=True)
    attempt = Attempt(house, task, lease, method)
    best: StoredModel | None
    drawing: Future[None] | None = None
    try:
        if task.promotion is None:
            feedback = attempt.feedback
            feedback.check()
            attempt.check_parameters()
            batch = feedback.find()
            start = attempt.fetch_starting_model()
            data = feedback.prepare(batch)
            if not feedback.has_taken(batch):
                data = attempt.try_start(data)  # what fails up to here leaves the batch collecting
                batch = feedback.release(batch)
                data = feedback.prepare(batch, data)
            experiment_id, seed = attempt.open_experiment(batch, start)
            baseline = attempt.score_baseline(experiment_id, data)
            trial, best, trials = attempt.search(experiment_id, seed, baseline)
            drawing = attempt.draw(trials)  # while the models are judged
            recipe = attempt.recall_recipe(experiment_id, trial, seed, baseline)
            best, promotion = attempt.judge(data, baseline, recipe, best)
        else:  # an earlier attempt got as far as the verdict: only its consequences are missing
            experiment_id, best, promotion = attempt.recall_verdict(task.promotion)
        attempt.summarize(experiment_id, drawing)
        attempt.carry_out(experiment_id, best, promotion)
        attempt.finish(experiment_id)
    finally:
        attempt.workspace.close()


class Attempt:
    """One worker's try at a task. Its methods are the steps of `run_iteration`."""

    def __init__(self, house: House, task: FineTuningTask, lease: Lease, method: AnyMethod) -> None:
        self.house = house.in_project(task.project)
        self.task = task
        self.lease = lease
        self.method = method
        self.workspace = Workspace(house, task, lease, method)
        self.budget = task.budget.or_else(method.budget)
        #: how many parts of the queries judge
        self.folds = task.folds or method.folds
        self.seed = house.settings.seed if task.seed is None else task.seed
        #: draws a set, within what the task allows
        self.suggest = narrow(method.suggest, task.parameters)
        self.champions = Champions(self.house)
        #: what the iteration starts from, in words, once that is known
        self.parent = ""
        #: whose model the best one is compared with, once that is known
        self.champion_run_id = ""
        self.feedback = Feedback(self)

    def check_parameters(self) -> None:
        """Raise InvalidInput for hyperparameters that the method does not have, or not so."""
        if self.task.parameters:
            check = partial(
                check_names,
                self.method.suggest,
                self.task.parameters,
                self.seed,
                CHECK_SETS,
            )
            self.workspace.call(PROPOSING, check, self.lease.check_stop)

    # -- the starting point ------------------------------------------------------------------

    def fetch_starting_model(self) -> StoredModel:
        """Copy the champion to the workspace: the initial model, until another is promoted. Where
        the task names what to start from, copy that, and the champion beside it."""
        named, workspace = self.task.initial_model, self.workspace
        registered = self._registered()
        if registered.is_initial and (named or not registered.is_named_initial):
            # the method may start from another one by now
            initial = self._store_initial(named)
            registered = self.lease.patiently(self.champions.begin_with, self.task, initial)
        self._mirror_champion()
        # as it is by now: what a person wished for is carried out with the mirroring
        found = self.lease.patiently(self.house.store.models.find, self.task.registered_as)
        registered = found or registered
        champion = registered.version(registered.champion)
        start, self.parent = champion.model, f"{registered.name}/{champion.number}"
        self.champion_run_id = champion.model.run_id
        if named and not registered.is_initial:
            start, self.parent = self._named(named), named
        self._download(start, workspace.start)
        if start.run_id != champion.model.run_id:
            self._download(champion.model, workspace.champion)
        return start

    def _download(self, model: StoredModel, folder: Path) -> None:
        try:
            self.house.tracking.models.download(model, folder)
        except CorruptModel as error:
            raise CorruptModel(
                f"{error}. It is the model to start from: {story.OTHER_CHAMPION}"
            ) from error

    def _named(self, reference: str) -> StoredModel:
        """Return what a task names to start from: of a registered model the version as it lies."""
        found = self.lease.patiently(self.house.store.models.referred, reference)
        return self._store_initial(reference) if found is None else found.model

    def _store_initial(self, named: str | None) -> StoredModel:
        """Store an initial model of this one's own: the method's, or a copy of what is named."""
        folder, tracking = self.workspace.folder / "initial", self.house.tracking
        found = None
        if named:
            found = self.lease.patiently(self.house.store.models.referred, named)
        if found is not None:
            tracking.models.download(found.model, folder)
        else:
            if named and Path(named).is_absolute() and not self.house.settings.allows_folder(named):
                raise InvalidInput(
                    f"initial_model is {named!r}, which is not below ES_ALLOWED_ROOTS"
                )
            self.workspace.run(SaveInitialModel(self.workspace.method, folder, named or ""))
        return tracking.models.store_initial(self.task.registered_name, folder, self.task.id)

    def _registered(self) -> RegisteredModel:
        """Return what is registered of the model that the task goes on with."""
        name, method = self.task.registered_as, self.task.fine_tuning_method
        return self.lease.patiently(self.champions.of, name, method)

    def _mirror_champion(self) -> None:
        """Return once MLflow's alias shows the champion."""
        while not self.lease.patiently(self.champions.mirror, self.task.registered_as):
            self.lease.check()
            time.sleep(POLL_SECONDS)

    def try_start(self, data: Data) -> Data:
        """Score the starting model before anything is used up: it is the method's first work."""
        self.lease.show(phase="baseline", main_metric_name=self.method.main_metric)
        return replace(data, start=self._score_start())

    def open_experiment(self, batch: SessionBatch | None, start: StoredModel) -> tuple[str, int]:
        """Return the id of the task's experiment, and the seed of its search."""
        tracking, method = self.house.tracking, self.method
        opened = tracking.iterations.open(
            self.task.id,
            self.task.registered_name,
            "" if batch is None else batch.batch_id,
            start.run_id,
            self.task.fresh_starts,
            self.task.project,
            str(self.task.time_range or ""),
            self.task.labels_id or "",
            self.task.judge_labels_id or "",
            self.task.fine_tuning_method if self.task.model_name else "",
            self.parent,
            self.champion_run_id,
        )
        experiment_id = opened.experiment_id
        params = dict.fromkeys(name for some in self._draw_sets() for name in some)
        tracking.iterations.keep_view(experiment_id, method.main_metric, method.direction, params)
        if self.task.experiment_id != experiment_id:
            self.record(
                TaskEventKind.EXPERIMENT_OPENED,
                f"MLflow experiment {experiment_id}, from the model of run {start.run_id}",
                {"experiment_id": experiment_id, "start_run_id": start.run_id},
                experiment_id=experiment_id,
            )
        tracking.runs.kill_unfinished(experiment_id)
        # each generation draws other sets; an attempt of the same one draws the same again
        return experiment_id, self.seed + SEEDS_PER_GENERATION * (opened.generation - 1)

    def score_baseline(self, experiment_id: str, data: Data) -> Baseline:
        """Score the starting model as it is, on the data of every trial, and estimate the cost."""
        self.lease.show(phase="baseline", main_metric_name=self.method.main_metric)
        if finished := self.house.tracking.runs.finished_baseline(experiment_id):
            baseline = Baseline(finished[0], dict(finished[1]))
        else:
            baseline = self._log_baseline(experiment_id, data)
        self.lease.show(baseline=baseline.metrics[self.method.main_metric])
        self._show_cost(experiment_id, baseline.metrics)
        baseline.metrics.pop(ESTIMATE, None)
        return baseline

    def _log_baseline(self, experiment_id: str, data: Data) -> Baseline:
        tracking, metric = self.house.tracking, self.method.main_metric
        tracking.runs.record_data(experiment_id, data.figures, data.page)
        run_id = tracking.runs.start_baseline(experiment_id)
        scored = data.start or self._score_start()
        metrics, value = dict(scored.metrics), scored.metrics[metric]
        if scored.tokens_per_trial is not None:
            again = self.folds if self.folds > 1 else 0
            trainings = (self.budget.max_trials or 1) + again
            metrics[ESTIMATE] = round(scored.tokens_per_trial * trainings)
        tracking.runs.log_output(run_id, self.workspace.outputs)
        tracking.runs.finish_baseline(run_id, metrics, value)
        self.record(
            TaskEventKind.BASELINE_SCORED,
            f"the starting model has {metric} {value:.4f} on validation",
            {"main_metric": metric, "value": value},
        )
        for warning in scored.warnings:
            self.warn(warning, run_id)
        return Baseline(run_id, metrics, scored.queries)

    def _score_start(self) -> BaselineResult:
        place, copy = self.workspace, self.workspace.folder / "saved again"
        return place.run(
            ScoreBaseline(place.method, place.start, place.data, copy, self._draw_sets())
        )

    def _draw_sets(self) -> list[Parameters]:
        """Return what the trials may look like."""
        seed = self.seed
        draw = partial(draw_sets, self.suggest, ESTIMATE_FROM_SETS, seed)
        return self.workspace.call(PROPOSING, draw, self.lease.check_stop)

    def _show_cost(self, experiment_id: str, baseline: Mapping[str, float]) -> None:
        """Go on from what MLflow knows of the estimate and of the trials of earlier attempts."""
        self.lease.show(
            trained_tokens=self._trained_tokens(experiment_id),
            estimated_trained_tokens=int(baseline[ESTIMATE]) if ESTIMATE in baseline else None,
        )

    # -- search ----------------------------------------------------------------------------------

    def search(
        self, experiment_id: str, seed: int, baseline: Baseline
    ) -> tuple[Trial, StoredModel, Sequence[Trial]]:
        """Run the trials until the budget is spent; return the best, its model, and all trials."""
        trials = Trials(self, experiment_id, seed, baseline)
        best, model = trials.run()
        return best, model, sorted(trials.ended, key=lambda trial: trial.number)

    def draw(self, trials: Sequence[Trial]) -> "Future[None]":
        """Begin to draw what the search found."""
        metric, direction = self.method.main_metric, self.method.direction
        folder = self.workspace.folder / "summary"
        return self.workspace.submit(DrawSearch(tuple(trials), direction, metric, folder))

    # -- verdict and consequences ----------------------------------------------------------------

    def recall_recipe(
        self, experiment_id: str, best: Trial, seed: int, baseline: Baseline
    ) -> Recipe:
        """Return the best trial's set, as the method drew it, for further trainings."""
        draw = partial(draw_again, self.suggest, best.params, seed)
        params = self.workspace.call(PROPOSING, draw, self.lease.check_stop)
        return Recipe(self, experiment_id, best, params, seed + best.number, baseline.metrics)

    def judge(
        self,
        data: Data,
        baseline: Baseline,
        recipe: Recipe,
        best: StoredModel,
    ) -> tuple[StoredModel, Promotion]:
        """Compare the best set with the champion on queries that it did not see, those of labels
        where they judge, train on all of them what is to be served, and record the fenced verdict.
        Return it with that model."""
        tracking, workspace = self.house.tracking, self.workspace
        if not workspace.best.exists():  # found by an earlier attempt
            tracking.models.download(best, workspace.best)
        folds = recipe.folds()
        self.lease.show(phase="promote", seconds_left=None)
        method, parts = workspace.method, tuple(fold.data for fold in folds)
        is_start = not workspace.champion.exists()
        compared = workspace.start if is_start else workspace.champion
        judges = tuple(data.judges.values())
        of_start, *of_folds = workspace.run_all(
            [
                Examine(method, compared, (*parts, *judges)),
                *(Examine(method, fold.model, (fold.data, *judges)) for fold in folds),
            ]
        )
        of_set = [of_fold[0] for of_fold in of_folds]
        starts, of_start = of_start[len(parts) :], of_start[: len(parts)]
        by_labels = {
            labels_id: (starts[n], averaged([of_fold[1 + n] for of_fold in of_folds]))
            for n, labels_id in enumerate(data.judges)
        }
        before, after = (join([one.scores for one in of]) for of in (of_start, of_set))
        verdict, judged_start, judged_set = self._decide(of_start, of_set, by_labels)
        changes = query_changes(judged_start, judged_set)
        gained, lost = most_changed(changes)
        page = queries_page(judged_start, judged_set, changes, verdict.metrics)
        sessions, needed = int(data.figures["sessions"]), None
        if sessions and verdict.judge_labels_id is None:
            needed = sessions_needed(verdict, sessions)
        verdict = replace(
            verdict,
            gained=gained,
            lost=lost,
            has_lists=bool(page),
            folds=len(folds),
            sessions_needed=needed,
        )
        promote = self._promote_when
        registered = self._registered()
        known = registered.version_of(best.run_id)
        if verdict.promoted and known is not None and known.was_champion:
            verdict = _refused(
                verdict, f"it was champion as version {known.number} and was rolled back"
            )
        elif verdict.promoted and not registered.is_champion(self.champion_run_id):
            verdict = _refused(verdict, f"{registered.say_champion()}: start a new task")
        served = best
        is_wanted = len(folds) > 1 and (verdict.promoted or promote is Promote.NEVER)
        of_labels = {data.judges[name]: one for name, (_, one) in by_labels.items()}
        if is_wanted and (refitted := recipe.refit(folds, after, of_labels)) is not None:
            served, verdict = refitted, replace(verdict, served_model=ServedModel.REFIT)
        self._note_cost(recipe.experiment_id)
        scores: dict[str, tuple[Scores, Scores]] = {"": (before, after)}
        scores |= {f"{name}_": (one.scores, of.scores) for name, (one, of) in by_labels.items()}
        before_run_id = baseline.run_id if is_start else None
        self._log_test_scores(scores, before_run_id, {best.run_id, served.run_id})
        if changes:
            tracking.runs.log_text(served.run_id, "queries.csv", as_csv(changes))
        if page:
            tracking.runs.log_text(served.run_id, QUERIES_PAGE, page)
        self._record_verdict(verdict, best_model=served)
        return served, verdict

    def _decide(
        self,
        of_start: Sequence[Examined],
        of_set: Sequence[Examined],
        by_labels: Mapping[str, tuple[Examined, Examined]],
    ) -> tuple[Promotion, Sequence[Examined], Sequence[Examined]]:
        """Return the verdict, and the two on the queries that made it.

        of_start, of_set: on the held-out parts of what is learnt from; by_labels: the same on the
        labels that judge, by their names."""
        metric, direction, seed = (
            self.method.main_metric,
            self.method.direction,
            self.seed,
        )
        promote = self._promote_when
        before: Scores
        after: Scores
        before, after = (join([one.scores for one in of]) for of in (of_start, of_set))
        others = [
            compare(metric, one.scores, of.scores, seed, labels_id, is_golden=True)
            for labels_id, (one, of) in by_labels.items()
            if labels_id != self.task.judge_labels_id
        ]
        if (judge := self.task.judge_labels_id) is not None:
            others.insert(0, compare(metric, before, after, seed))
            of_start, of_set = ([one] for one in by_labels[judge])
            before, after = of_start[0].scores, of_set[0].scores
        verdict = decide(metric, direction, before, after, seed, promote, judge)
        return guard(replace(verdict, others=tuple(others)), direction), of_start, of_set

    def _note_cost(self, experiment_id: str) -> None:
        """Count what was trained since the search."""
        tokens = self._trained_tokens(experiment_id)
        self.lease.show(trained_tokens=tokens)
        self.house.tracking.iterations.record_cost(experiment_id, tokens)

    def _trained_tokens(self, experiment_id: str) -> int:
        return sum(self.house.tracking.runs.trained_tokens(experiment_id).values())

    def _log_test_scores(
        self,
        scores: Mapping[str, tuple[Scores, Scores]],
        before_run_id: str | None,
        run_ids: Collection[str],
    ) -> None:
        """Log scores before and after, each under a beginning of its name. before_run_id: None
        where what was compared with has no run here."""
        runs = self.house.tracking.runs
        befores, afters = (
            {
                f"{beginning}{name}": mean
                for beginning, both in scores.items()
                for name, mean in finite_means(both[place]).items()
                if name in both[1 - place]
            }
            for place in (0, 1)
        )
        known = befores.keys() & afters.keys()
        if before_run_id is not None:
            runs.log_test_scores(before_run_id, {name: befores[name] for name in sorted(known)})
        for run_id in run_ids:
            runs.log_test_scores(run_id, {name: afters[name] for name in sorted(known)})

    def _record_verdict(self, promotion: Promotion, **fields: Any) -> None:
        verdict = story.verdict(promotion)
        kind = TaskEventKind.PROMOTED if promotion.promoted else TaskEventKind.REFUSED
        figures = {"baseline": promotion.baseline, "best": promotion.best}
        self.record(kind, verdict, figures, promotion=promotion, **fields)
        log.info("%s", verdict)

    def recall_verdict(self, promotion: Promotion) -> tuple[str, StoredModel | None, Promotion]:
        """Return what an earlier attempt recorded: experiment, best model and verdict."""
        experiment_id = self.task.experiment_id or ""
        finished = self.house.tracking.runs.finished_baseline(experiment_id)
        self._show_cost(experiment_id, finished[1] if finished else {})
        return experiment_id, self.task.best_model, promotion

    def summarize(self, experiment_id: str, drawing: "Future[None] | None") -> None:
        """Keep what the search found, drawn and as a table, in a run of its own.

        A drawing that fails is told there and in the log: no model hangs on it."""
        tracking = self.house.tracking
        if tracking.runs.finished(experiment_id, "summary") is not None:
            return
        if drawing is None:  # an earlier attempt ended between its verdict and this
            drawing = self.draw(
                tracking.runs.finished_trials(experiment_id, self.method.main_metric)
            )
        folder: Path | None = self.workspace.folder / "summary"
        failure: Exception | None = None
        try:
            self.workspace.result_of(drawing)
        except (ExecutorUnavailable, LeaseLost, Draining):
            raise
        except Exception as error:  # noqa: BLE001 - no model hangs on a drawing
            folder, failure = None, error
            log.warning("the search was not drawn: %r", failure)
        tracking.runs.store_summary(experiment_id, folder, repr(failure))

    def carry_out(self, experiment_id: str, best: StoredModel | None, promotion: Promotion) -> None:
        """Move the champion if the verdict says so, then remove the older iterations."""
        tracking, settings = self.house.tracking, self.house.settings
        self.lease.check()
        if best is not None:
            training = tracking.iterations.training_of(
                experiment_id, best.run_id, self.task.batch_ids, self.method.meta.version
            )
            if promotion.promoted:
                promotion = self._promote(experiment_id, best, promotion, training)
            if not promotion.promoted:
                keep, never = self.champions.keep, self._promote_when is Promote.NEVER
                self.lease.patiently(keep, self.task, best, promotion, training, never)
            if promotion.served_model is ServedModel.REFIT:
                self._keep_only(experiment_id, best)
            tracking.iterations.describe_verdict(experiment_id, promotion, best)
        self.lease.show(phase="clean up")
        tracking.iterations.remove_older(
            self.task.registered_name,
            experiment_id,
            settings.keep_iterations,
            settings.keep_models,
            self._retire,
        )
        if settings.keep_batches:
            delete = self.house.store.clickstream.delete_older
            self.lease.patiently(delete, settings.keep_batches)

    def _keep_only(self, experiment_id: str, model: StoredModel) -> None:
        """Remove what else the iteration has stored, the best trial's model."""
        find, name = self.house.store.models.find, self.task.registered_as
        registered = self.lease.patiently(find, name)
        kept = registered.kept_run_ids if registered else ()
        self.house.tracking.runs.keep_best(experiment_id, model.run_id, kept)

    @property
    def _promote_when(self) -> Promote:
        return self.task.promote or Promote(self.method.promote)

    def _promote(
        self, experiment_id: str, best: StoredModel, promotion: Promotion, training: Training
    ) -> Promotion:
        """Make the best model champion; take the verdict back if the champion was moved since."""
        champion_run_id = self.house.tracking.iterations.champion_run_id(experiment_id)
        promote = self.champions.promote
        try:
            self.lease.patiently(promote, self.task, best, promotion, champion_run_id, training)
        except Conflict as error:
            promotion = _refused(promotion, f"{error}: start a new task")
            self._record_verdict(promotion)
        self._mirror_champion()
        return promotion

    def _retire(self, older: "OlderIteration") -> bool:
        """Note in the store that an iteration goes, before it does; False if it has to stay."""
        store, now = self.house.store, self.house.clock()
        keep = self.house.settings.keep_champions
        what = "its experiment goes, with its model" if older.is_whole else "its model goes"
        why = f"{what}, for task {self.task.id} is newer"
        forget = partial(store.tasks.forget_iteration, older.task_id, older.experiment_id)

        def retire() -> None:
            self.lease.patiently(
                store.models.update,
                self.task.registered_as,
                lambda model: model.retired(older.run_ids, keep, now),
            )

        try:
            retire()
            with suppress(NotFound):
                self.lease.patiently(forget, now, why, older.is_whole)
            # a wish that came in between was carried out if the task had its model still
            retire()
        except Conflict:
            return False
        return True

    def finish(self, experiment_id: str) -> None:
        """End the task, and say so in MLflow before."""
        self.lease.beat()  # the last word on progress
        self.lease.check()
        tracking, now = self.house.tracking, self.house.clock()
        end = TaskStatus.STOPPED if self.lease.is_stopping else TaskStatus.DONE
        tracking.iterations.set_state(experiment_id, end)
        tracking.settle()
        finish = self.house.store.tasks.finish
        self.lease.patiently(finish, self.lease.claim, now, end)

    # -- the task's history ----------------------------------------------------------------------

    def record(
        self, kind: TaskEventKind, detail: str, data: Mapping[str, Any], **fields: Any
    ) -> None:
        """Set fields of the task and add an event to its history, in one fenced write."""
        if fields:  # they name what is in MLflow
            self.house.tracking.settle()
        now = self.house.clock()
        record, event = self.house.store.tasks.record, TaskEvent(kind, now, detail, data)
        self.lease.patiently(record, self.lease.claim, now, event=event, **fields)

    def warn(self, what: str, run_id: str | None = None) -> None:
        """Tell of what is no failure, in the log, the task's history and the run's note."""
        log.warning("%s", what)
        if run_id is not None:
            self.house.tracking.runs.warn(run_id, what)
        self.record(TaskEventKind.WARNING, what, {})


def _refused(promotion: Promotion, reason: str) -> Promotion:
    return replace(promotion, promoted=False, reason=reason)
