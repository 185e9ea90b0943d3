"""Iterations, each an MLflow experiment that is found by its tags."""

import ast
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from types import NoneType
from typing import NamedTuple

import mlflow
from mlflow.entities import Experiment

from embedding_studio.methods import Direction
from embedding_studio.models import Training
from embedding_studio.projects import DEFAULT_PROJECT, RegisteredName
from embedding_studio.search import Trial
from embedding_studio.tasks import Promotion, StoredModel
from embedding_studio.tracking import card, story
from embedding_studio.tracking.client import Client, unless_gone
from embedding_studio.tracking.models import MODEL_FOLDER, Models
from embedding_studio.tracking.names import TRAINED_TOKENS, from_mlflow
from embedding_studio.tracking.reader import CARD
from embedding_studio.tracking.registry import Registry
from embedding_studio.tracking.runs import Runs

NOTE = "mlflow.note.content"
"""The tag of what people read above an experiment's runs."""
_FEW = 4  # experiments a page, where most searches end with the first


class PreviousSearch(NamedTuple):
    """An older iteration's finished trials, and the scores of what they started from."""

    trials: Sequence[Trial]
    baseline: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Iteration:
    """An experiment of a task, as its tags tell."""

    experiment_id: str
    task_id: str
    project: str
    state: str
    #: 1 for a model's first iteration, then one higher each time
    generation: int


class OlderIteration(NamedTuple):
    """What retention is about to remove."""

    experiment_id: str
    task_id: str
    run_ids: frozenset[str]
    #: its runs too, not only the files of their models
    is_whole: bool


class Iterations:
    """The iterations of all models.

    The tag `es.method` is the registered model that an iteration goes on with, which is named like
    its method unless its task says otherwise."""

    def __init__(self, client: Client, runs: Runs, models: Models, registry: Registry) -> None:
        self._client = client
        self._runs = runs
        self._models = models
        self._registry = registry

    def open(
        self,
        task_id: str,
        registered_name: RegisteredName,
        batch_id: str,
        start_run_id: str,
        fresh_starts: int = 0,
        project: str = DEFAULT_PROJECT,
        made: str = "",
        labels_id: str = "",
        judge_labels_id: str = "",
        method: str = "",
        parent: str = "",
        champion_run_id: str = "",
    ) -> Iteration:
        """Return the task's experiment, made if it is not there yet.

        Trials are comparable only if they started from the same model: an experiment of this task
        that started from another one is closed as abandoned, and a new one is made. So it is after
        a fresh start. made: which time range was learnt from, if one was; the batch is its last.
        labels_id, judge_labels_id: the labels that were learnt from, and that judge, if any.
        method: by which, where the model is not named like it. parent: what is started from.
        champion_run_id: whose model the best is compared with, where that is another one."""
        for experiment in self._client.experiments(
            {"es.kind": "iteration", "es.method": registered_name, "es.task_id": task_id}
        ):
            experiment_id: str = experiment.experiment_id
            is_same_start = experiment.tags["es.start_run_id"] == start_run_id
            if is_same_start and int(experiment.tags["es.fresh_starts"]) == fresh_starts:
                if experiment.tags["es.state"] == "error":
                    self._runs.supersede_failures(experiment_id)
                self._tag(experiment_id, "es.champion_run_id", champion_run_id or start_run_id)
                self.set_state(experiment_id, "running", "")
                return _as_iteration(experiment_id, {**experiment.tags, "es.state": "running"})
            why = "its task went on from another model, in another experiment"
            self.set_state(experiment_id, "abandoned", why)
        newest = next(self._by_age(registered_name, "DESC"), None)
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
            **({"es.made": made} if made else {}),
            **({"es.labels": labels_id} if labels_id else {}),
            **({"es.judge_labels": judge_labels_id} if judge_labels_id else {}),
            **({"es.plugin": method} if method else {}),
            **({"es.parent": parent} if parent else {}),
            "es.champion_run_id": champion_run_id or start_run_id,
        }
        experiment_id = self._client.create_experiment(
            f"iteration / {registered_name} / {batch_id or labels_id}",
            {**tags, NOTE: story.state_note("running", "", tags)},
        )
        return _as_iteration(experiment_id, tags)

    def set_state(self, experiment_id: str, state: str, why: str | None = None) -> None:
        """Say where an iteration stands; one that is `running` is never cleaned up.

        why: for people, who read it above the runs; None leaves them what is there."""
        if why is not None:
            tags = self._client.reading.get_experiment(experiment_id).tags
            self._tag(experiment_id, NOTE, story.state_note(state, why, tags))
        self._tag(experiment_id, "es.state", state)

    def keep_view(
        self, experiment_id: str, metric: str, direction: Direction, params: Iterable[str]
    ) -> None:
        """Keep how links show an iteration's runs: the best by `metric` first, and these params."""
        name, value = story.saved_view(metric, direction, params, int(time.time() * 1000))
        self._tag(experiment_id, name, value)

    def champion_run_id(self, experiment_id: str) -> str:
        """Return the run of the model that an iteration compares with: the one that it started
        from, unless its task named another one to start from."""
        tags = self._client.reading.get_experiment(experiment_id).tags
        champion: str = tags.get("es.champion_run_id") or tags["es.start_run_id"]
        return champion

    def training_of(
        self, experiment_id: str, run_id: str, batch_ids: Sequence[str], method_version: str
    ) -> Training:
        """Return what an iteration made a run's model of. batch_ids: where several were named."""
        tags = self._client.reading.get_experiment(experiment_id).tags
        params = self._client.reading.get_run(run_id).data.params.items()
        return Training(
            tags.get("es.parent"),
            tuple(batch_ids or filter(None, [tags["es.batch_id"]])),
            tags.get("es.labels"),
            tags.get("es.judge_labels"),
            method_version,
            {from_mlflow(name): _value(text) for name, text in sorted(params)},
        )

    def record_cost(self, experiment_id: str, trained_tokens: int) -> None:
        """Tag an iteration with what its trials have cost."""
        self._tag(experiment_id, f"es.{TRAINED_TOKENS}", str(trained_tokens))

    def describe_verdict(self, experiment_id: str, promotion: Promotion, best: StoredModel) -> None:
        """Put the verdict above the iteration's runs, and a card beside the best model's files."""
        tags = self._client.reading.get_experiment(experiment_id).tags
        baseline = self._runs.finished(experiment_id, "baseline")
        run = self._client.reading.get_run(best.run_id)
        self._tag(experiment_id, NOTE, story.verdict_note(promotion, tags, baseline, run))
        encoder_card = None
        if any(file.path == CARD for file in best.files):
            place = f"{best.artifact_uri}/{CARD}"
            encoder_card = self._client.patiently(partial(mlflow.artifacts.load_text, place))
        data = self._runs.finished(experiment_id, "data")
        text = card.write(encoder_card, promotion, tags, run, data)
        place = f"{MODEL_FOLDER}/{CARD}"
        self._client.patiently(lambda: self._client.writing.log_text(best.run_id, text, place))

    def tell_promotion(self, run_id: str, told: str) -> None:
        """Put above the runs of a model's iteration that a person made the model champion."""
        experiment_id = self._client.reading.get_run(run_id).info.experiment_id
        note = self._client.reading.get_experiment(experiment_id).tags.get(NOTE, "")
        self._tag(experiment_id, NOTE, story.preceded(note, told))

    def _tag(self, experiment_id: str, name: str, value: str) -> None:
        self._client.writing.set_experiment_tag(experiment_id, name, value)

    def previous_search(
        self, registered_name: RegisteredName, experiment_id: str
    ) -> PreviousSearch | None:
        """Return what the model's latest older iteration that has finished trials found."""
        this = _generation(self._client.reading.get_experiment(experiment_id))
        for previous in self._by_age(registered_name, "DESC"):
            if _generation(previous) >= this or previous.tags["es.state"] == "running":
                continue
            if trials := self._runs.finished_trials(previous.experiment_id):
                baseline = self._runs.finished_baseline(previous.experiment_id)
                return PreviousSearch(trials, baseline[1] if baseline else {})
        return None

    def remove_older(
        self,
        registered_name: RegisteredName,
        experiment_id: str,
        keep: int = 1,
        keep_models: int = 1,
        retire: Callable[[OlderIteration], bool] = lambda older: True,
    ) -> None:
        """Remove the model's iterations that are over and older than this: runs, files and all.

        Versions of the registered model whose files go, go too. Repeating it is safe; so is a late
        call by a worker that lost its lease, for what is newer stays.

        keep: how many generations stay, this one and the latest before it.
        keep_models: how many of them keep their model files.
        retire: is told of each before anything of it goes; what it says no to stays whole."""
        this = _generation(self._client.reading.get_experiment(experiment_id))

        def is_beyond(most: int, experiment: Experiment) -> bool:
            return _generation(experiment) <= this - most

        # both lists end with what is to go, and neither holds what went before
        oldest_first = self._by_age(registered_name, "ASC")
        outdated = [*takewhile(partial(is_beyond, keep), oldest_first)]
        outdated_ids = {experiment.experiment_id for experiment in outdated}
        with_models = self._client.experiments(
            {"es.kind": "iteration", "es.method": registered_name, "es.models": "kept"}
        )
        stripped = [one for one in with_models if is_beyond(keep_models, one)]
        for older in outdated + [one for one in stripped if one.experiment_id not in outdated_ids]:
            if older.tags["es.state"] == "running":
                continue
            runs = list(self._client.runs(older.experiment_id))
            run_ids = frozenset(run.info.run_id for run in runs)
            is_whole = older.experiment_id in outdated_ids
            task_id = older.tags["es.task_id"]
            if not retire(OlderIteration(older.experiment_id, task_id, run_ids, is_whole)):
                continue
            for registered in self._registry.versions(registered_name):
                if registered.run_id in run_ids:
                    self._registry.delete_version(registered_name, str(registered.version))
            if is_whole:
                self.remove(older.experiment_id)
            else:
                for run in runs:
                    self._models.delete_of(run)
                with unless_gone():
                    self._tag(older.experiment_id, "es.models", "removed")

    def discard_task(self, task_id: str, kept_run_ids: Collection[str]) -> None:
        """Delete the models of a canceled task, but not those of registered versions.

        The runs stay until the iteration is removed: a restart goes on from them. Only the best
        set, whose model is gone, is then to be tried again."""
        for experiment_id in self.of_task(task_id):
            self._runs.kill_unfinished(experiment_id)
            for run in list(self._client.runs(experiment_id)):
                if run.info.run_id in kept_run_ids:
                    continue
                tags = run.data.tags
                if tags.get("es.kind") == "trial" and tags.get("es.model") == "stored":
                    self._runs.supersede(run)
                self._models.delete_of(run)
            why = "the task's models were removed"
            self.set_state(experiment_id, "canceled", why)

    def remove(self, experiment_id: str) -> None:
        """Delete an experiment with its runs and all their files. Repeating it is safe, and so is
        another worker's doing the same at the same time."""
        for run in list(self._client.runs(experiment_id)):
            self._models.delete_artifacts(run)
            self._client.writing.delete_run(run.info.run_id)
        if self._client.reading.get_experiment(experiment_id).lifecycle_stage == "active":
            with unless_gone():
                self._client.writing.delete_experiment(experiment_id)

    def adopt_older(self) -> None:
        """Tag the iterations of version 0.1, which did not say whether they keep models."""
        for older in [*self._client.experiments({"es.kind": "iteration"})]:
            if "es.models" not in older.tags:
                self._tag(older.experiment_id, "es.models", "kept")

    def with_models(self) -> list[Iteration]:
        """Return the iterations at work, and those that still keep their models.

        In no others do crashes leave anything."""
        experiments = self._client.experiments({"es.kind": "iteration", "es.models": "kept"})
        return [_as_iteration(found.experiment_id, found.tags) for found in experiments]

    def of_task(self, task_id: str) -> list[str]:
        """Return the ids of every experiment that attempts of this task made."""
        found = self._client.experiments({"es.task_id": task_id})
        return [experiment.experiment_id for experiment in found]

    def _by_age(self, registered_name: RegisteredName, order: str) -> Iterator[Experiment]:
        """Yield a model's iterations by age, as many as are asked for. order: ASC or DESC."""
        return self._client.experiments(
            {"es.kind": "iteration", "es.method": registered_name},
            order_by=[f"creation_time {order}", f"experiment_id {order}"],
            page_size=_FEW,
        )


def _as_iteration(experiment_id: str, tags: Mapping[str, str]) -> Iteration:
    return Iteration(
        experiment_id=experiment_id,
        task_id=tags["es.task_id"],
        project=tags.get("es.project", DEFAULT_PROJECT),
        state=tags["es.state"],
        generation=int(tags["es.generation"]),
    )


def _value(text: str) -> int | float | bool | str | None:
    """Return what a parameter is that MLflow keeps as text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | bool | NoneType) else text


def _generation(experiment: Experiment) -> int:
    return int(experiment.tags["es.generation"])
