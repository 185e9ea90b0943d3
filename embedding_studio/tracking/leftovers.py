"""Files of models that crashes left in MLflow's artifacts, and versions without files."""

import os
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial

from mlflow.entities import Experiment, ViewType

from embedding_studio.deletion import Leftover, remove_tree
from embedding_studio.models import RegisteredModel
from embedding_studio.tracking.client import Client, local_folder, pages, unless_gone
from embedding_studio.tracking.models import MODEL_FOLDER, Models
from embedding_studio.tracking.registry import Registry


class Leftovers:
    """What the sweep finds in MLflow, and how it is removed."""

    def __init__(self, client: Client, models: Models, registry: Registry) -> None:
        self._client = client
        self._models = models
        self._registry = registry

    def find(self, models: Sequence[RegisteredModel]) -> Iterator[Leftover]:
        """Yield model files that no run stands for.

        Those are uploads that were never finished, files of experiments that were removed, initial
        models that were stored twice, and registered versions without files.
        models: all that are registered; what they keep stays, and so does what is somebody else's.
        """
        kept_run_ids = {run_id for model in models for run_id in model.kept_run_ids}
        ours = {model.registered_name: model for model in models}
        for experiment in self._client.experiments({"es.models": "kept"}):
            yield from self._unfinished_uploads(experiment)
        for experiment in self._client.experiments({"es.kind": "initial"}):
            yield from self._unfinished_uploads(experiment)
            yield from self._repeated_initial_models(experiment, kept_run_ids)
        # within a week: MLflow forgets none of them
        a_week_ago = int((time.time() - 7 * 86400) * 1000)
        for experiment in self._client.experiments(
            {"es.kind": "iteration"}, view_type=ViewType.DELETED_ONLY, since=a_week_ago
        ):
            yield from _folder_of(experiment)
        for registered in pages(self._client.reading.search_registered_models):
            if registered.name not in ours:
                continue
            spared = {*map(int, registered.aliases.values()), *ours[registered.name].kept_numbers}
            for entry in self._registry.versions(registered.name):
                number = str(entry.version)
                if int(number) not in spared and entry.run_id and self._is_gone(entry.run_id):
                    what = f"version {number} of {registered.name} has no files"
                    yield what, partial(self._registry.delete_version, registered.name, number)

    def _unfinished_uploads(self, experiment: Experiment) -> Iterator[Leftover]:
        for run in list(self._client.runs(experiment.experiment_id)):
            state = run.data.tags.get("es.model")
            local = local_folder(run.info.artifact_uri)
            has_files = local is not None and (local / MODEL_FOLDER).exists()
            is_leftover = state == "uploading" or (state != "stored" and has_files)
            if run.info.status != "RUNNING" and is_leftover:
                what = f"run {run.info.run_id} has model files but no model"
                yield what, partial(self._models.delete_files, run)

    def _repeated_initial_models(
        self, experiment: Experiment, kept_run_ids: Collection[str]
    ) -> Iterator[Leftover]:
        """Keep those of registered versions, and one of a method that has none: two workers may
        have stored their first at once. One that was stored a moment ago may yet be registered."""
        an_hour_ago = (time.time() - 3600) * 1000
        runs = self._client.runs(experiment.experiment_id)  # the latest first, as is looked up
        stored = [run for run in runs if run.data.tags.get("es.model") == "stored"]
        having = {r.data.tags["es.method"] for r in stored if r.info.run_id in kept_run_ids}
        for run in stored:
            name = run.data.tags["es.method"]
            is_old = (run.info.end_time or an_hour_ago) < an_hour_ago
            if run.info.run_id not in kept_run_ids and name in having and is_old:
                what = f"run {run.info.run_id} repeats the initial model of {name}"
                yield what, partial(self._models.delete_of, run)
            having.add(name)

    def _is_gone(self, run_id: str) -> bool:
        """Return whether a run, or its model, was deleted."""
        with unless_gone():
            run = self._client.reading.get_run(run_id)
            is_deleted: bool = run.info.lifecycle_stage != "active"
            return is_deleted or run.data.tags.get("es.model") == "deleted"
        return True


def _folder_of(experiment: Experiment) -> Iterator[Leftover]:
    """Yield the local files of an experiment that was removed, if there still are any."""
    folder = local_folder(experiment.artifact_location)
    if folder is not None and any(files for _, _, files in os.walk(folder)):
        what = f"{folder} holds files of experiment {experiment.experiment_id}, which was removed"
        yield what, partial(remove_tree, folder, ignore_errors=True)
