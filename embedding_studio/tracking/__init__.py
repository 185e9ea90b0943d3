"""Everything MLflow: the ledger of trials, the models' files, the registry with its champions.

Things are found by tags, never by name. Network faults (time-outs, 5xx) are retried by MLflow's own
client; MLFLOW_HTTP_REQUEST_MAX_RETRIES and its siblings tune that.

A model's life on its run is told by the tag `es.model`: uploading -> stored -> deleted. Only a
stored model was read back whole and scored.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow loads
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A request is given up after half a minute, not after four: the worker waits out what lasts longer.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# models are files that run no code; nothing else is to be loaded in our processes
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ["MLFLOW_ALLOW_MODEL_CODE_EXECUTION"] = "false"

import mlflow
from mlflow.entities import Experiment, Metric, Param, Run, RunTag

from embedding_studio.executors.base import Report
from embedding_studio.methods import Direction
from embedding_studio.mlflow_names import TRAINED_TOKENS, from_mlflow, to_mlflow
from embedding_studio.projects import DEFAULT_PROJECT, RegisteredName
from embedding_studio.search import FinishedTrial, Outcome, PlannedTrial, Proposal, SuggestedSet
from embedding_studio.tasks import Promotion, StoredModel
from embedding_studio.tracking import card, story
from embedding_studio.tracking.models import MODEL_FOLDER, Models, unless_gone

SLIDING_WINDOW = 3
_MOST_METRICS = 1000  # that MLflow takes in one call
_FEW = 4  # experiments a page, where most searches end with the first
_MOST_PARAMS = 100
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000


@dataclass(frozen=True, slots=True)
class OpenIteration:
    """generation: 1 for a method's first iteration, then one higher each time."""

    experiment_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class PreviousSearch:
    """An older iteration's finished trials, and the scores of what they started from."""

    trials: Sequence[FinishedTrial]
    baseline: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Iteration:
    """An experiment of a task, as its tags tell."""

    experiment_id: str
    task_id: str
    project: str
    state: str


class OlderIteration(NamedTuple):
    """What retention is about to remove; is_whole: its runs too, not only their models' files."""

    experiment_id: str
    task_id: str
    run_ids: frozenset[str]
    is_whole: bool


class Tracking(Models):
    """The models, and the ledger: iterations with their trials, one MLflow run each."""

    # -- iterations ------------------------------------------------------------------------------

    def open_iteration(
        self,
        task_id: str,
        registered_name: RegisteredName,
        batch_id: str,
        start_run_id: str,
        fresh_starts: int = 0,
        project: str = DEFAULT_PROJECT,
    ) -> OpenIteration:
        """Return the task's experiment, made if it is not there yet.

        Trials are comparable only if they started from the same model: an experiment of this task
        that started from another one is closed as abandoned, and a new one is made. So it is after
        a fresh start.
        """
        for experiment in self._search_experiments(
            {"es.kind": "iteration", "es.method": registered_name, "es.task_id": task_id}
        ):
            experiment_id: str = experiment.experiment_id
            is_same_start = experiment.tags["es.start_run_id"] == start_run_id
            if is_same_start and int(experiment.tags["es.fresh_starts"]) == fresh_starts:
                if experiment.tags["es.state"] == "error":
                    self._supersede_failures(experiment_id)
                self.set_iteration_state(experiment_id, "running", "")
                return OpenIteration(experiment_id, _generation(experiment))
            why = "its task went on from another model, in another experiment"
            self.set_iteration_state(experiment_id, "abandoned", why)
        newest = next(self._iterations_of(registered_name, "DESC"), None)
        generation = 1 if newest is None else _generation(newest) + 1
        tags = {
            "es.kind": "iteration",
            "es.state": "running",
            "es.task_id": task_id,
            "es.method": registered_name,
            "es.project": project,
            "es.batch_id": batch_id,
            "es.start_run_id": start_run_id,
            "es.fresh_starts": str(fresh_starts),
            "es.generation": str(generation),
            "es.models": "kept",
        }
        experiment_id = self._create_experiment(
            f"iteration / {registered_name} / {batch_id}",
            {**tags, "mlflow.note.content": story.state_note("running", "", tags)},
        )
        return OpenIteration(experiment_id, generation)

    def _supersede_failures(self, experiment_id: str) -> None:
        """Free the budget of a restarted task from the sets that failed before the restart."""
        for run in list(self._runs(experiment_id)):
            if run.info.status == "FAILED":
                self._supersede(run)

    def _supersede(self, run: Run) -> None:
        """Let a trial count no more."""
        self._rename(run, story.name_of_superseded(run.info.run_name))
        self._client.set_tag(run.info.run_id, "es.kind", "superseded")

    def sets_without_model(self, experiment_id: str) -> list[SuggestedSet]:
        """Return the sets whose models a cancel removed while they were the best."""
        return [
            _planned(run).suggested
            for run in self._runs(experiment_id)
            if run.data.tags.get("es.kind") == "superseded"
            and run.data.tags.get("es.outcome") == Outcome.COMPLETE
        ]

    def set_iteration_state(self, experiment_id: str, state: str, why: str | None = None) -> None:
        """Say where an iteration stands; one that is `running` is never cleaned up.

        why: for people, who read it above the runs; None leaves them what is there."""
        if why is not None:
            tags = self._client.get_experiment(experiment_id).tags
            self._describe(experiment_id, story.state_note(state, why, tags))
        self._client.set_experiment_tag(experiment_id, "es.state", state)

    def keep_view(
        self, experiment_id: str, metric: str, direction: Direction, params: Iterable[str]
    ) -> None:
        """Keep how links show an iteration's runs: the best by `metric` first, and these params."""
        name, value = story.saved_view(metric, direction, params, int(time.time() * 1000))
        self._client.set_experiment_tag(experiment_id, name, value)

    def start_run_id(self, experiment_id: str) -> str:
        """Return the run of the model that an iteration started from."""
        start: str = self._client.get_experiment(experiment_id).tags["es.start_run_id"]
        return start

    def record_cost(self, experiment_id: str, trained_tokens: int) -> None:
        """Tag an iteration with what its trials have cost."""
        self._client.set_experiment_tag(experiment_id, f"es.{TRAINED_TOKENS}", str(trained_tokens))

    def describe_verdict(self, experiment_id: str, promotion: Promotion, best: StoredModel) -> None:
        """Put the verdict above the iteration's runs, and a card beside the best model's files."""
        tags = self._client.get_experiment(experiment_id).tags
        baseline = self._finished(experiment_id, "baseline")
        run = self._client.get_run(best.run_id)
        self._describe(experiment_id, story.verdict_note(promotion, tags, baseline, run))
        encoder_card = None
        if any(file.path == card.CARD for file in best.files):
            place = f"{best.artifact_uri}/{card.CARD}"
            encoder_card = self._patiently(partial(mlflow.artifacts.load_text, place))
        data = self._finished(experiment_id, "data")
        text = card.write(encoder_card, promotion, tags, baseline, run, data)
        place = f"{MODEL_FOLDER}/{card.CARD}"
        self._patiently(partial(self._client.log_text, best.run_id, text, place))

    def _describe(self, experiment_id: str, note: str) -> None:
        self._client.set_experiment_tag(experiment_id, "mlflow.note.content", note)

    def previous_search(
        self, registered_name: RegisteredName, experiment_id: str
    ) -> PreviousSearch | None:
        """Return what the method's latest older iteration that has finished trials found."""
        this = _generation(self._client.get_experiment(experiment_id))
        for previous in self._iterations_of(registered_name, "DESC"):
            if _generation(previous) >= this or previous.tags["es.state"] == "running":
                continue
            if trials := self.finished_trials(previous.experiment_id):
                baseline = self.finished_baseline(previous.experiment_id)
                return PreviousSearch(trials, baseline[1] if baseline else {})
        return None

    def remove_older_iterations(
        self,
        registered_name: RegisteredName,
        experiment_id: str,
        keep: int = 1,
        keep_models: int = 1,
        retire: Callable[[OlderIteration], bool] = lambda older: True,
    ) -> None:
        """Remove the method's iterations that are over and older than this: runs, files and all.

        keep: how many generations stay, this one and the latest before it; keep_models: how many of
        them keep their model files. Versions of the registered model whose files go, go too.
        Repeating it is safe; so is a late call by a worker that lost its lease, for what is newer
        stays. retire: is told of each before anything of it goes; what it says no to stays whole.
        """
        this = _generation(self._client.get_experiment(experiment_id))

        def is_beyond(most: int, experiment: Experiment) -> bool:
            return _generation(experiment) <= this - most

        # both lists end with what is to go, and neither holds what went before
        oldest_first = self._iterations_of(registered_name, "ASC")
        outdated = [*takewhile(partial(is_beyond, keep), oldest_first)]
        outdated_ids = {experiment.experiment_id for experiment in outdated}
        with_models = self._search_experiments(
            {"es.kind": "iteration", "es.method": registered_name, "es.models": "kept"}
        )
        stripped = [one for one in with_models if is_beyond(keep_models, one)]
        for older in outdated + [one for one in stripped if one.experiment_id not in outdated_ids]:
            if older.tags["es.state"] == "running":
                continue
            runs = list(self._runs(older.experiment_id))
            run_ids = frozenset(run.info.run_id for run in runs)
            is_whole = older.experiment_id in outdated_ids
            task_id = older.tags["es.task_id"]
            if not retire(OlderIteration(older.experiment_id, task_id, run_ids, is_whole)):
                continue
            for registered in self._versions(registered_name):
                if registered.run_id in run_ids:
                    with unless_gone():
                        self._client.delete_model_version(registered_name, str(registered.version))
            if is_whole:
                self.remove_iteration(older.experiment_id)
            else:
                for run in runs:
                    self._delete_model(run)
                with unless_gone():
                    self._client.set_experiment_tag(older.experiment_id, "es.models", "removed")

    def discard_task(self, task_id: str, kept_run_ids: Collection[str]) -> None:
        """Delete the models of a canceled task, but not those of registered versions.

        The runs stay until the iteration is removed: a restart goes on from them. Only the best
        set, whose model is gone, is then to be tried again."""
        for experiment_id in self.task_experiments(task_id):
            self.kill_unfinished(experiment_id)
            for run in list(self._runs(experiment_id)):
                if run.info.run_id in kept_run_ids:
                    continue
                if run.data.tags.get("es.model") == "stored":
                    self._supersede(run)
                self._delete_model(run)
            why = "the task's models were removed"
            self.set_iteration_state(experiment_id, "canceled", why)

    def remove_iteration(self, experiment_id: str) -> None:
        """Delete an experiment with its runs and all their files. Repeating it is safe, and so is
        another worker's doing the same at the same time."""
        for run in list(self._runs(experiment_id)):
            self._delete_files(run)
            self._client.delete_run(run.info.run_id)
        if self._client.get_experiment(experiment_id).lifecycle_stage == "active":
            with unless_gone():
                self._client.delete_experiment(experiment_id)

    def adopt_older_iterations(self) -> None:
        """Tag the iterations of version 0.1, which did not say whether they keep models."""
        for older in [*self._search_experiments({"es.kind": "iteration"})]:
            if "es.models" not in older.tags:
                self._client.set_experiment_tag(older.experiment_id, "es.models", "kept")

    def iterations_with_models(self) -> list[Iteration]:
        """Return the iterations at work, and those that still keep their models.

        In no others do crashes leave anything."""
        found = self._search_experiments({"es.kind": "iteration", "es.models": "kept"})
        return [
            Iteration(
                experiment_id=experiment.experiment_id,
                task_id=experiment.tags["es.task_id"],
                project=experiment.tags.get("es.project", DEFAULT_PROJECT),
                state=experiment.tags["es.state"],
            )
            for experiment in found
        ]

    def has_unfinished(self, experiment_id: str) -> bool:
        """Return whether a run of the experiment is RUNNING."""
        return any(run.info.status == "RUNNING" for run in self._runs(experiment_id))

    def task_experiments(self, task_id: str) -> list[str]:
        """Return the ids of every experiment that attempts of this task made."""
        found = self._search_experiments({"es.task_id": task_id})
        return [experiment.experiment_id for experiment in found]

    def _iterations_of(self, registered_name: RegisteredName, order: str) -> Iterator[Experiment]:
        """Yield a method's iterations by age, as many as are asked for. order: ASC or DESC."""
        return self._search_experiments(
            {"es.kind": "iteration", "es.method": registered_name},
            order_by=[f"creation_time {order}", f"experiment_id {order}"],
            page_size=_FEW,
        )

    # -- runs ------------------------------------------------------------------------------------

    def finished_baseline(self, experiment_id: str) -> tuple[str, Mapping[str, float]] | None:
        """Return the id and the metrics of the experiment's baseline run, if it is finished."""
        run = self._finished(experiment_id, "baseline")
        if run is None:
            return None
        return run.info.run_id, {from_mlflow(k): value for k, value in run.data.metrics.items()}

    def start_baseline(self, experiment_id: str) -> str:
        """Open the run without training."""
        return self._create_run(experiment_id, "baseline", {"es.kind": "baseline"})

    def record_data(self, experiment_id: str, figures: Mapping[str, float]) -> None:
        """Keep what the data is, as `data/<name>`, on a run of its own. Repeating it is safe."""
        if self._finished(experiment_id, "data") is not None:
            return
        run_id = self._create_run(experiment_id, "data", {"es.kind": "data"})
        named = {f"data/{to_mlflow(name)}": value for name, value in figures.items()}
        self._client.log_batch(run_id, metrics=_metrics(named))
        self._client.set_terminated(run_id)

    def start_trial(self, experiment_id: str, proposal: Proposal, seed: int) -> str:
        """Open the run of one hyperparameter set."""
        planned = proposal.planned
        run_id = self._create_run(
            experiment_id,
            f"trial {planned.number + 1}",
            {
                "es.kind": "trial",
                "es.trial": str(planned.number),
                "es.study_trial": str(planned.study_number),
                **_long_tag("es.suggested.values", planned.suggested.values),
                **_long_tag("es.suggested.distributions", planned.suggested.distributions),
            },
        )
        params = [
            Param(to_mlflow(str(name)), _shortened(str(value)))
            for name, value in proposal.params.items()
        ]
        params.append(Param("es.seed" if "seed" in proposal.params else "seed", str(seed)))
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + _MOST_PARAMS])
        return run_id

    def log_output(self, run_id: str, printed: Path) -> None:
        """Keep what was printed, if anything was: a file, or a folder of them."""
        if printed.is_dir():
            self._patiently(partial(self._client.log_artifacts, run_id, str(printed), printed.name))
        elif printed.exists():
            self._client.log_artifact(run_id, str(printed))

    def log_reports(self, run_id: str, reports: Sequence[Report]) -> None:
        """Log the scores of some steps, and the cost so far, in one call."""
        self._log(run_id, _reported(reports))

    def _log(self, run_id: str, metrics: Sequence[Metric], tags: Sequence[RunTag] = ()) -> None:
        """Log metrics in as many calls as MLflow takes them in; the tags come with the last."""
        first = 0
        while len(metrics) - first > _MOST_METRICS:
            self._client.log_batch(run_id, metrics[first : first + _MOST_METRICS])
            first += _MOST_METRICS
        self._client.log_batch(run_id, metrics[first:], tags=tags)

    def finish_run(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        reports: Sequence[Report] = (),
        unlogged: Sequence[Report] = (),
        seconds: Mapping[str, float] | None = None,
        outcome: Outcome = Outcome.COMPLETE,
        value: float | None = None,
        failure: str | None = None,
        why: str | None = None,
        trained_tokens: int = 0,
        attrs: str | None = None,
        number: int | None = None,
    ) -> None:
        """End a run with its final scores, the aggregates of its reports, and what took how long.

        The outcome and value are written before the status: a run that is terminated is complete
        in the ledger. unlogged: those of its reports that are yet to be logged. failure: the
        traceback of a failed trial, kept as artifact `traceback.txt`; why: it failed, for people.
        attrs: what the search noted on the trial. number: the trial's, from 1, for its name; None
        for the baseline.
        """
        totals = {
            f"{story.ASIDE}seconds.{phase}": duration for phase, duration in (seconds or {}).items()
        }
        final = {**_keyed(metrics), **_cost(trained_tokens)}
        points = [
            *_reported(unlogged),
            *_metrics({**aggregate(reports), **totals}),
            *_metrics(final, step=reports[-1].step + 1 if reports else 0),
        ]
        last_step = reports[-1].step if reports else None
        reason = why.partition("\n")[0] if why else None
        name = story.name_of(number, outcome, value, last_step, reason)
        tags = {"es.outcome": outcome.value, "mlflow.runName": name}
        if attrs is not None:
            tags["es.attrs"] = attrs
        if outcome is Outcome.PRUNED and last_step is not None:
            tags["es.pruned_at_step"] = str(last_step)
            tags["mlflow.note.content"] = f"Pruned at step {last_step}: it had no prospects."
        if value is not None:
            tags["es.value"] = repr(value)
        if failure is not None:
            self._client.log_text(run_id, failure, "traceback.txt")
            tags["es.failure"] = (reason or "")[:500]
            tags["mlflow.note.content"] = story.block(failure)
        self._log(run_id, points, [RunTag(k, v) for k, v in tags.items()])
        status = {Outcome.COMPLETE: "FINISHED", Outcome.PRUNED: "KILLED", Outcome.FAILED: "FAILED"}
        self._client.set_terminated(run_id, status[outcome])

    def warn(self, run_id: str, what: str) -> None:
        """Tell in a run's note of something that is no failure."""
        former = self._client.get_run(run_id).data.tags.get("mlflow.note.content")
        notes = [*filter(None, [former]), story.prose(what)]
        self._client.set_tag(run_id, "mlflow.note.content", "\n\n".join(notes))

    def has_summary(self, experiment_id: str) -> bool:
        """Return whether an iteration's search was summarized."""
        return self._finished(experiment_id, "summary") is not None

    def store_summary(self, experiment_id: str, folder: Path | None, failure: str) -> None:
        """Keep the files of a folder in the iteration's summary run; None: say what failed."""
        begun = next(self._of_kind(experiment_id, "summary"), None)
        run_id = (
            self._create_run(experiment_id, "summary", {"es.kind": "summary"})
            if begun is None
            else begun.info.run_id
        )
        if folder is not None:
            self._patiently(partial(self._client.log_artifacts, run_id, str(folder)))
        note = "What the search found: see the artifacts."
        if folder is None:
            note = f"Not drawn: {story.prose(failure)}"
        self._client.set_tag(run_id, "mlflow.note.content", note)
        self._client.set_terminated(run_id)

    def _of_kind(self, experiment_id: str, kind: str) -> Iterator[Run]:
        return (run for run in self._runs(experiment_id) if run.data.tags.get("es.kind") == kind)

    def _finished(self, experiment_id: str, kind: str) -> Run | None:
        runs = self._of_kind(experiment_id, kind)
        return next((run for run in runs if run.info.status == "FINISHED"), None)

    def store_failure(self, experiment_id: str, traceback: str) -> None:
        """Keep the traceback of what ended an iteration in a run of its own."""
        note = {"mlflow.note.content": story.block(traceback)}
        run_id = self._create_run(experiment_id, "failure", {"es.kind": "failure", **note})
        try:
            self._client.log_text(run_id, traceback, "traceback.txt")
        finally:
            self._client.set_terminated(run_id, "FAILED")

    def kill_run(self, run_id: str, why: str | None = None) -> None:
        """End a run that does not count: interrupted, or left behind by a dead worker."""
        if why is not None:
            note = f"Ended before it was done: {story.prose(why)}."
            self._client.set_tag(run_id, "mlflow.note.content", note)
        self._client.set_terminated(run_id, "KILLED")

    def log_test_scores(self, run_id: str, scores: Mapping[str, float]) -> None:
        """Log scores on the test split, as `test_<metric>`, to a run that has ended."""
        named = {f"{story.TEST}{to_mlflow(name)}": value for name, value in scores.items()}
        self._client.log_batch(run_id, metrics=_metrics(named))

    def kill_unfinished(self, experiment_id: str) -> None:
        """End the runs that a dead worker left RUNNING, and delete what they uploaded."""
        for run in list(self._runs(experiment_id)):
            if run.info.status == "RUNNING":
                self._delete_model(run)
                self.kill_run(run.info.run_id)

    def finished_trials(self, experiment_id: str, metric: str | None = None) -> list[FinishedTrial]:
        """Return the trials that count against the budget, in the order of their numbers.

        metric: whose reported values to fetch with them; None for none.
        """
        runs = (
            run
            for run in self._runs(experiment_id)
            if run.data.tags.get("es.kind") == "trial"
            and "es.outcome" in run.data.tags
            and run.info.status != "RUNNING"
        )
        return [
            _as_trial(run, self._reported(run, metric) if metric else {})
            for run in sorted(runs, key=lambda run: int(run.data.tags["es.trial"]))
        ]

    def interrupted_trials(self, experiment_id: str) -> list[PlannedTrial]:
        """Return the trials that ended without an outcome, with the worker that ran them, say."""
        return [
            _planned(run)
            for run in self._runs(experiment_id)
            if run.data.tags.get("es.kind") == "trial" and "es.outcome" not in run.data.tags
        ]

    def trained_tokens(self, experiment_id: str) -> dict[str, int]:
        """Return what each run of an experiment has cost by its last report, however it ended."""
        return {
            run.info.run_id: int(run.data.metrics[TRAINED_TOKENS])
            for run in self._runs(experiment_id)
            if TRAINED_TOKENS in run.data.metrics
        }

    def _reported(self, run: Run, metric: str) -> dict[int, float]:
        history = self._client.get_metric_history(run.info.run_id, to_mlflow(metric))
        reported = {point.step: point.value for point in history}
        if "es.value" in run.data.tags:  # the last one is the final score, which was no report
            del reported[max(reported)]
        return reported


def _generation(experiment: Experiment) -> int:
    return int(experiment.tags["es.generation"])


def _metrics(values: Mapping[str, float], step: int = 0) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in values.items()]


def _keyed(metrics: Mapping[str, float]) -> dict[str, float]:
    return {to_mlflow(name): value for name, value in metrics.items()}


def _reported(reports: Sequence[Report]) -> list[Metric]:
    return [
        point
        for report in reports
        for point in _metrics(
            {**_keyed(report.metrics), **_cost(report.trained_tokens)}, report.step
        )
    ]


def _cost(trained_tokens: int) -> dict[str, float]:
    return {TRAINED_TOKENS: trained_tokens} if trained_tokens else {}


def aggregate(reports: Sequence[Report]) -> dict[str, float]:
    """Return `<metric>.last`, `.min`, `.max`, `.mean` and, from two reports on, `.sliding_mean`.

    The sliding mean is that of the last three reports. Names begin with `story.ASIDE`.
    """
    histories: dict[str, list[float]] = {}
    for report in reports:
        for name, value in _keyed(report.metrics).items():
            histories.setdefault(name, []).append(value)
    totals = {}
    for metric, values in histories.items():
        name = f"{story.ASIDE}{metric}"
        totals[f"{name}.last"] = values[-1]
        totals[f"{name}.min"] = min(values)
        totals[f"{name}.max"] = max(values)
        totals[f"{name}.mean"] = fmean(values)
        if len(values) > 1:
            totals[f"{name}.sliding_mean"] = fmean(values[-SLIDING_WINDOW:])
    return totals


def _long_tag(name: str, text: str) -> dict[str, str]:
    """Return a text as tags no longer than MLflow keeps them: `name`, then `name.1` and so on."""
    parts = [text[first : first + _TAG_LENGTH] for first in range(0, len(text), _TAG_LENGTH)]
    return {f"{name}.{number}" if number else name: part for number, part in enumerate(parts)}


def _read_tag(tags: Mapping[str, str], name: str) -> str:
    text, number = tags[name], 1
    while (part := tags.get(f"{name}.{number}")) is not None:
        text, number = text + part, number + 1
    return text


def _shortened(value: str) -> str:
    return value if len(value) <= _PARAM_LENGTH else f"{value[: _PARAM_LENGTH - 1]}…"


def _planned(run: Run) -> PlannedTrial:
    tags = run.data.tags
    number = int(tags["es.trial"])
    suggested = SuggestedSet(
        _read_tag(tags, "es.suggested.values"), _read_tag(tags, "es.suggested.distributions")
    )
    return PlannedTrial(number, int(tags.get("es.study_trial", number)), suggested)


def _as_trial(run: Run, reported: Mapping[int, float]) -> FinishedTrial:
    tags = run.data.tags
    ended, started = run.info.end_time, run.info.start_time
    return FinishedTrial(
        run_id=run.info.run_id,
        planned=_planned(run),
        outcome=Outcome(tags["es.outcome"]),
        value=float(tags["es.value"]) if "es.value" in tags else None,
        intermediate_values=reported,
        attrs=tags.get("es.attrs", "{}"),
        seconds=(ended - started) / 1000 if ended and started else 0.0,
        ended=ended or 0,
        has_model=tags.get("es.model") == "stored",
    )
