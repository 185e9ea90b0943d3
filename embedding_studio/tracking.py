"""Everything MLflow: the ledger of trials, the models' files, the registry with its champions.

Things are found by tags, never by name. Network faults (time-outs, 5xx) are retried by MLflow's own
client; MLFLOW_HTTP_REQUEST_MAX_RETRIES and its siblings tune that.

A model's life on its run is told by the tag `es.model`: uploading -> stored -> deleted. Only a
stored model was read back whole and scored.
"""

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow loads
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import (
    RESOURCE_ALREADY_EXISTS,
    ErrorCode,
)
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from embedding_studio.errors import CorruptModel
from embedding_studio.executors.base import Report
from embedding_studio.search import FinishedTrial, Outcome, Proposal, SuggestedSet
from embedding_studio.tasks import ModelFile, StoredModel

CHAMPION = "champion"
SLIDING_WINDOW = 3

_MODEL = "model"  # the artifact folder of a run's model: an MLflow model
_MANIFEST = "files.json"  # in it: the payload's folder, and path, size and hash of each file
_SENTENCE_TRANSFORMER = "model.sentence_transformer"  # where the flavor of MLflow looks
_PAGE = 1000
_UI_VIEW = {"mlflow.experimentKind": "custom_model_development"}  # runs and metrics, no LLM traces


@dataclass(frozen=True, slots=True)
class OpenIteration:
    """generation: 1 for a method's first iteration, then one higher each time."""

    experiment_id: str
    generation: int


class Tracking:
    """One MLflow server or local database.

    artifacts_folder: where model files go when MLflow is a local database; a server decides
    for itself.
    """

    def __init__(self, tracking_uri: str, artifacts_folder: Path) -> None:
        mlflow.set_tracking_uri(tracking_uri)  # the artifact repositories read the global one
        self._client = MlflowClient(tracking_uri)
        self._artifacts_folder = None if tracking_uri.startswith("http") else artifacts_folder

    # -- models --------------------------------------------------------------------------------

    def store_initial_model(self, method_name: str, folder: Path) -> StoredModel:
        """Upload what a method starts from, as run `initial_model` of `iteration / initial`.

        The same files are uploaded once; other files replace those of the method stored before.
        """
        experiment = self._find_experiment({"es.kind": "initial"})
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._create_experiment("iteration / initial", {"es.kind": "initial"})
        )
        files = tuple(_describe_files(folder))
        former = [
            run
            for run in self._runs(experiment_id)
            if run.data.tags.get("es.method") == method_name
        ]
        for run in former:
            if run.data.tags.get("es.model") == "stored":
                stored = self.stored_model(run.info.run_id)
                if stored.files == files:
                    return stored
        new = self._client.create_run(
            experiment_id, run_name="initial_model", tags={"es.method": method_name}
        )
        model = self.upload_model(new.info.run_id, folder)
        self.confirm_model(model)
        self._client.set_terminated(new.info.run_id)
        for run in former:
            self._delete_model(run)
        return model

    def upload_model(self, run_id: str, folder: Path) -> StoredModel:
        """Upload a folder that a method saved, as an MLflow model with the hash of every file.

        A sentence-transformers folder gets MLflow's flavor for it. Raises CorruptModel when the
        folder is empty.
        """
        files = tuple(_describe_files(folder))
        if not files:
            raise CorruptModel(f"the method saved no file for run {run_id}")
        is_sentence_transformer = (folder / "modules.json").exists()
        payload = _SENTENCE_TRANSFORMER if is_sentence_transformer else "data"
        card = folder.parent / f"{folder.name}.mlmodel"
        card.mkdir(exist_ok=True)
        _write_mlmodel(card, is_sentence_transformer)
        (card / _MANIFEST).write_text(
            json.dumps({"payload": payload, "files": [asdict(file) for file in files]})
        )
        self._client.set_tag(run_id, "es.model", "uploading")
        self._client.log_artifacts(run_id, str(folder), f"{_MODEL}/{payload}")
        self._client.log_artifacts(run_id, str(card), _MODEL)
        return self._locate(run_id, payload, files)

    def confirm_model(self, model: StoredModel) -> None:
        """Mark an uploaded model as stored, once it was read back and found good."""
        self._client.set_tag(model.run_id, "es.model", "stored")

    def download_model(self, model: StoredModel, folder: Path) -> None:
        """Copy a model's files into a new `folder`. Raises CorruptModel if one is not as saved."""
        folder.mkdir(parents=True)
        _repository(model.artifact_uri).download_artifacts("", str(folder))
        found = {file.path: file for file in _describe_files(folder)}
        for file in model.files:
            if found.get(file.path) != file:
                raise CorruptModel(
                    f"{file.path} of the model of run {model.run_id} is missing or is not what "
                    "was saved: delete the run, or restore the file from a backup"
                )

    def stored_model(self, run_id: str) -> StoredModel:
        """Return where a run's model lies."""
        text = mlflow.artifacts.load_text(f"{self._artifact_uri(run_id)}/{_MODEL}/{_MANIFEST}")
        manifest = json.loads(text)
        files = tuple(ModelFile(**file) for file in manifest["files"])
        return self._locate(run_id, manifest["payload"], files)

    def delete_model(self, run_id: str) -> None:
        """Delete the model files of one run, if it has any. Repeating it is safe."""
        self._delete_model(self._client.get_run(run_id))

    def delete_models(self, experiment_id: str, keep_run_id: str | None) -> None:
        """Delete the model files of every run of an experiment but one; the runs stay, tagged.

        Bytes are gone from the disk or object store. Repeating it is safe.
        """
        for run in list(self._runs(experiment_id)):
            if run.info.run_id != keep_run_id:
                self._delete_model(run)

    # -- the registry --------------------------------------------------------------------------

    def champion(self, method_name: str) -> StoredModel | None:
        """Return the model behind the alias `champion` of a method's registered model."""
        run_id = self._champion_run_id(method_name)
        return None if run_id is None else self.stored_model(run_id)

    def promote(self, method_name: str, model: StoredModel) -> None:
        """Point `champion` to this model; register it first if it is not. Repeating it is safe."""
        try:
            self._client.create_registered_model(method_name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        source = f"{self._artifact_uri(model.run_id)}/{_MODEL}"
        versions = [v for v in self._versions(method_name) if v.run_id == model.run_id]
        registered = (
            versions[0]
            if versions
            else self._client.create_model_version(method_name, source, run_id=model.run_id)
        )
        self._client.set_registered_model_alias(method_name, CHAMPION, str(registered.version))

    def _champion_run_id(self, method_name: str) -> str | None:
        for model in self._client.search_registered_models(f"name = '{method_name}'"):
            if CHAMPION in model.aliases:
                number = str(model.aliases[CHAMPION])
                run_id: str | None = self._client.get_model_version(method_name, number).run_id
                return run_id
        return None

    def _versions(self, method_name: str) -> Sequence[Any]:
        return self._client.search_model_versions(f"name = '{method_name}'")

    # -- iterations ------------------------------------------------------------------------------

    def open_iteration(
        self, task_id: str, method_name: str, batch_id: str, start_run_id: str
    ) -> OpenIteration:
        """Return the task's experiment, made if it is not there yet.

        Trials are comparable only if they started from the same model: an experiment of this task
        that started from another one is closed as abandoned, and a new one is made.
        """
        generations = [0]
        for experiment in self._search_experiments(
            {"es.kind": "iteration", "es.method": method_name}
        ):
            experiment_id: str = experiment.experiment_id
            generation = int(experiment.tags["es.generation"])
            generations.append(generation)
            if experiment.tags["es.task_id"] != task_id:
                continue
            if experiment.tags["es.start_run_id"] == start_run_id:
                if experiment.tags["es.state"] == "error":
                    self._supersede_failures(experiment_id)
                self.set_iteration_state(experiment_id, "running")
                return OpenIteration(experiment_id, generation)
            self.set_iteration_state(experiment_id, "abandoned")
        generation = max(generations) + 1
        experiment_id = self._create_experiment(
            f"iteration / {method_name} / {batch_id}",
            {
                "es.kind": "iteration",
                "es.state": "running",
                "es.task_id": task_id,
                "es.method": method_name,
                "es.batch_id": batch_id,
                "es.start_run_id": start_run_id,
                "es.generation": str(generation),
                "mlflow.note.content": f"Task {task_id}: {method_name} on batch {batch_id}.",
            },
        )
        return OpenIteration(experiment_id, generation)

    def _supersede_failures(self, experiment_id: str) -> None:
        """Free the budget of a restarted task from the sets that failed before the restart."""
        for run in list(self._runs(experiment_id)):
            if run.info.status == "FAILED":
                self._client.set_tag(run.info.run_id, "es.kind", "superseded")

    def set_iteration_state(self, experiment_id: str, state: str) -> None:
        """Say where an iteration stands; one that is `running` is never cleaned up."""
        self._client.set_experiment_tag(experiment_id, "es.state", state)

    def describe_iteration(self, experiment_id: str, text: str) -> None:
        """Set what a person reads above the experiment's runs (Markdown)."""
        self._client.set_experiment_tag(experiment_id, "mlflow.note.content", text)

    def previous_trials(self, method_name: str, experiment_id: str) -> list[FinishedTrial]:
        """Return the finished trials of the method's latest older iteration that has any."""
        for previous in self._older_iterations(method_name, experiment_id):
            if trials := self.finished_trials(previous.experiment_id):
                return trials
        return []

    def remove_older_iterations(self, method_name: str, experiment_id: str) -> None:
        """Remove the method's iterations that are over and older than this: runs, files and all.

        The one that holds the champion stays until another model is champion. Versions of the
        registered model whose files go, go too. Repeating it is safe; so is a late call by a
        worker that lost its lease, for what is newer stays.
        """
        champion_run_id = self._champion_run_id(method_name)
        for older in self._older_iterations(method_name, experiment_id):
            run_ids = {run.info.run_id for run in self._runs(older.experiment_id)}
            if champion_run_id in run_ids:
                continue
            for registered in self._versions(method_name):
                if registered.run_id in run_ids:
                    self._client.delete_model_version(method_name, str(registered.version))
            self.remove_iteration(older.experiment_id)

    def discard_task(self, task_id: str, method_name: str) -> None:
        """Remove what a canceled task wrote, but never a model that became champion before that."""
        champion_run_id = self._champion_run_id(method_name)
        for experiment in self._search_experiments({"es.task_id": task_id}):
            experiment_id: str = experiment.experiment_id
            if champion_run_id in {run.info.run_id for run in self._runs(experiment_id)}:
                self.set_iteration_state(experiment_id, "canceled")
            else:
                self.remove_iteration(experiment_id)

    def remove_iteration(self, experiment_id: str) -> None:
        """Delete an experiment with its runs and all their files. Repeating it is safe."""
        for run in list(self._runs(experiment_id)):
            _repository(run.info.artifact_uri).delete_artifacts()
            self._client.delete_run(run.info.run_id)
        if self._client.get_experiment(experiment_id).lifecycle_stage == "active":
            self._client.delete_experiment(experiment_id)

    def task_experiments(self, task_id: str) -> list[str]:
        """Return the ids of every experiment that attempts of this task made."""
        found = self._search_experiments({"es.task_id": task_id})
        return [experiment.experiment_id for experiment in found]

    def _older_iterations(self, method_name: str, experiment_id: str) -> list[Experiment]:
        def age_of(experiment: Experiment) -> tuple[int, int]:
            return experiment.creation_time or 0, int(experiment.experiment_id)

        this = self._client.get_experiment(experiment_id)
        found = self._search_experiments({"es.kind": "iteration", "es.method": method_name})
        older = (
            experiment
            for experiment in found
            if age_of(experiment) < age_of(this) and experiment.tags["es.state"] != "running"
        )
        return sorted(older, key=age_of, reverse=True)

    # -- runs ------------------------------------------------------------------------------------

    def finished_baseline(self, experiment_id: str) -> tuple[str, Mapping[str, float]] | None:
        """Return the id and the metrics of the experiment's baseline run, if it is finished."""
        for run in self._runs(experiment_id):
            if run.data.tags.get("es.kind") == "baseline" and run.info.status == "FINISHED":
                return run.info.run_id, run.data.metrics
        return None

    def start_baseline(self, experiment_id: str, figures: Mapping[str, float]) -> str:
        """Open the run without training; `figures` say what the data is."""
        run = self._client.create_run(
            experiment_id, run_name="baseline", tags={"es.kind": "baseline"}
        )
        run_id: str = run.info.run_id
        self._log_metrics(run_id, {f"data/{name}": value for name, value in figures.items()})
        return run_id

    def start_trial(self, experiment_id: str, proposal: Proposal, seed: int) -> str:
        """Open the run of one hyperparameter set."""
        run = self._client.create_run(
            experiment_id,
            run_name=f"trial {proposal.number + 1}",
            tags={
                "es.kind": "trial",
                "es.trial": str(proposal.number),
                "es.suggested.values": proposal.suggested.values,
                "es.suggested.distributions": proposal.suggested.distributions,
            },
        )
        params = [Param(name, str(value)) for name, value in proposal.params.items()]
        self._client.log_batch(run.info.run_id, params=[*params, Param("seed", str(seed))])
        run_id: str = run.info.run_id
        return run_id

    def log_report(self, run_id: str, report: Report) -> None:
        """Log the scores of one step in one call."""
        self._log_metrics(run_id, report.metrics, report.step)

    def finish_run(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        reports: Sequence[Report] = (),
        seconds: Mapping[str, float] | None = None,
        outcome: Outcome = Outcome.COMPLETE,
        value: float | None = None,
        failure: str | None = None,
    ) -> None:
        """End a run with its final scores, the aggregates of its reports, and what took how long.

        The outcome and value are written before the status: a run that is terminated is complete
        in the ledger. failure: the traceback of a failed trial, kept as artifact `traceback.txt`.
        """
        totals = {f"seconds/{phase}": duration for phase, duration in (seconds or {}).items()}
        self._log_metrics(run_id, {**aggregate(reports), **totals})
        if metrics:
            self._log_metrics(run_id, metrics, step=reports[-1].step + 1 if reports else 0)
        tags = {"es.outcome": outcome.value}
        if value is not None:
            tags["es.value"] = repr(value)
        if failure is not None:
            self._client.log_text(run_id, failure, "traceback.txt")
            last_line = failure.strip().splitlines()[-1]
            tags["es.failure"] = last_line[:500]
            tags["mlflow.note.content"] = f"```\n{failure[-4000:]}\n```"
        self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        status = {Outcome.COMPLETE: "FINISHED", Outcome.PRUNED: "KILLED", Outcome.FAILED: "FAILED"}
        self._client.set_terminated(run_id, status[outcome])

    def kill_run(self, run_id: str) -> None:
        """End a run that does not count: interrupted, or left behind by a dead worker."""
        self._client.set_terminated(run_id, "KILLED")

    def mark_best(self, experiment_id: str, best_run_id: str) -> None:
        """Tag one run of an experiment as its best, and only that one."""
        for run in list(self._runs(experiment_id)):
            if run.info.run_id == best_run_id:
                self._client.set_tag(best_run_id, "es.is_best", "true")
            elif "es.is_best" in run.data.tags:
                self._client.delete_tag(run.info.run_id, "es.is_best")

    def log_test_scores(self, run_id: str, scores: Mapping[str, float]) -> None:
        """Log scores on the test split, as `test/<metric>`, to a run that has ended."""
        self._log_metrics(run_id, {f"test/{name}": value for name, value in scores.items()})

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

    def _reported(self, run: Run, metric: str) -> dict[int, float]:
        history = self._client.get_metric_history(run.info.run_id, metric)
        return {point.step: point.value for point in history}

    # -- the client's rough edges ------------------------------------------------------------------

    def _log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()]
        )

    def _delete_model(self, run: Run) -> None:
        if run.data.tags.get("es.model") in ("uploading", "stored"):
            _repository(run.info.artifact_uri).delete_artifacts(_MODEL)
            self._client.set_tag(run.info.run_id, "es.model", "deleted")

    def _runs(self, experiment_id: str) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=_PAGE,
                page_token=token,
            )  # fmt: skip
            yield from page
            token = page.token
            if not token:
                return

    def _find_experiment(self, tags: Mapping[str, str]) -> Experiment | None:
        return next(iter(self._search_experiments(tags)), None)

    def _search_experiments(self, tags: Mapping[str, str]) -> Sequence[Experiment]:
        wanted = " AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return self._client.search_experiments(filter_string=wanted)

    def _create_experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """Create an experiment under a name like `name`: those of deleted ones stay taken."""
        location = None
        if self._artifacts_folder is not None:
            slug = re.sub(r"\W+", "-", name).strip("-").lower()
            location = str(self._artifacts_folder / f"{slug}-{uuid.uuid4().hex[:8]}")
        suffix = 1
        while True:
            try:
                created: str = self._client.create_experiment(
                    name if suffix == 1 else f"{name} / {suffix}", location, {**tags, **_UI_VIEW}
                )
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
                suffix += 1
            else:
                return created

    def _artifact_uri(self, run_id: str) -> str:
        uri: str = self._client.get_run(run_id).info.artifact_uri
        return uri

    def _locate(self, run_id: str, payload: str, files: tuple[ModelFile, ...]) -> StoredModel:
        return StoredModel(run_id, f"{self._artifact_uri(run_id)}/{_MODEL}/{payload}", files)


def aggregate(reports: Sequence[Report]) -> dict[str, float]:
    """Return `<metric>/last`, `/min`, `/max`, `/mean` and, from two reports on, `/sliding_mean`.

    The sliding mean is that of the last three reports.
    """
    histories: dict[str, list[float]] = {}
    for report in reports:
        for name, value in report.metrics.items():
            histories.setdefault(name, []).append(value)
    totals = {}
    for name, values in histories.items():
        totals[f"{name}/last"] = values[-1]
        totals[f"{name}/min"] = min(values)
        totals[f"{name}/max"] = max(values)
        totals[f"{name}/mean"] = fmean(values)
        if len(values) > 1:
            totals[f"{name}/sliding_mean"] = fmean(values[-SLIDING_WINDOW:])
    return totals


def _as_trial(run: Run, reported: Mapping[int, float]) -> FinishedTrial:
    tags = run.data.tags
    ended, started = run.info.end_time, run.info.start_time
    return FinishedTrial(
        run_id=run.info.run_id,
        suggested=SuggestedSet(tags["es.suggested.values"], tags["es.suggested.distributions"]),
        outcome=Outcome(tags["es.outcome"]),
        value=float(tags["es.value"]) if "es.value" in tags else None,
        intermediate_values=reported,
        seconds=(ended - started) / 1000 if ended and started else 0.0,
    )


def _repository(artifact_uri: str) -> Any:
    return get_artifact_repository(artifact_uri)  # untyped in mlflow


def _describe_files(folder: Path) -> Iterator[ModelFile]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            yield ModelFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def _write_mlmodel(folder: Path, is_sentence_transformer: bool) -> None:
    """Write the MLmodel file that makes the payload loadable by MLflow's own flavors."""
    card = Model()
    if is_sentence_transformer:
        mlflow.pyfunc.add_to_model(
            card, loader_module="mlflow.sentence_transformers", data=_SENTENCE_TRANSFORMER
        )
        card.add_flavor(
            "sentence_transformers",
            sentence_transformers_version=version("sentence-transformers"),
            code=None,
        )
        packages = ("mlflow", "sentence-transformers", "transformers", "torch")
        pins = "".join(f"{package}=={version(package)}\n" for package in packages)
        (folder / "requirements.txt").write_text(pins)
    card.save(str(folder / "MLmodel"))
