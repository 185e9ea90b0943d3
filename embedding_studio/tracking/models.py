"""The files of models on their runs: uploaded, read back, copied, deleted.

A model's life on its run is told by the tag `es.model`: uploading -> stored -> deleted. Only a
stored model was read back whole and scored."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from embedding_studio.deletion import remove_tree
from embedding_studio.errors import CorruptModel
from embedding_studio.projects import RegisteredName
from embedding_studio.tasks import ModelFacts, ModelFile, StoredModel
from embedding_studio.tracking.client import Client, local_folder, repository, unless_gone
from embedding_studio.tracking.facts import facts_of
from embedding_studio.tracking.files import (
    describe_files,
    hash_of,
    link_tree,
    refuse_unknown_kinds,
    require_plain,
)
from embedding_studio.tracking.flavor import PAYLOAD, write_flavor

MODEL_FOLDER = "model"  # the artifact folder of a run's model: an MLflow model
_MANIFEST = "files.json"  # in it: the payload's folder, path, size and hash of each file, and facts


class Models:
    """The models that trials and methods have saved, and foreign ones that MLflow knows."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def store_initial(
        self, registered_name: RegisteredName, folder: Path, task_id: str = ""
    ) -> StoredModel:
        """Upload what a method starts from, as run `initial_model` of `iteration / initial`.

        The same files are uploaded once. What an earlier attempt of this task left unfinished is
        ended; what was stored before with other files is left to the sweep."""
        experiment = next(self._client.experiments({"es.kind": "initial"}), None)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment("iteration / initial", {"es.kind": "initial"})
        )
        files = tuple(describe_files(folder))
        former = [
            run
            for run in self._client.runs(experiment_id)
            if run.data.tags.get("es.method") == registered_name
        ]
        for run in former:
            if run.data.tags.get("es.model") == "stored":
                with suppress(CorruptModel):  # its files are gone: they are stored anew
                    stored = self.stored(run.info.run_id)
                    if stored.files == files:
                        self._end_initial_runs(experiment_id, task_id, stored.run_id)
                        return stored
        run_id = self._client.create_run(
            experiment_id, "initial_model", {"es.method": registered_name, "es.task_id": task_id}
        )
        model = self.upload(run_id, folder)
        self.confirm(model)
        self._end_initial_runs(experiment_id, task_id, run_id)
        return model

    def _end_initial_runs(self, experiment_id: str, task_id: str, stored_run_id: str) -> None:
        """End this task's RUNNING uploads: the good one as FINISHED, others with their files gone.

        Others are a dead attempt's, or a request's whose answer was lost and that was repeated."""
        for run in list(self._client.runs(experiment_id)):
            if run.info.status != "RUNNING":
                continue
            if run.info.run_id == stored_run_id:
                self._client.writing.set_terminated(stored_run_id)
            elif run.data.tags.get("es.task_id") == task_id:
                self.delete_of(run)
                self._client.writing.set_terminated(run.info.run_id, "KILLED")

    def upload(self, run_id: str, folder: Path) -> StoredModel:
        """Upload a folder that a method saved, as an MLflow model with the hash of every file.

        A sentence-transformers folder gets MLflow's flavor for it. The folder's files may be
        deleted afterwards but not written to. Raises CorruptModel when the folder is empty or holds
        files of a kind that may run code when they are read, such as pickles."""
        files = tuple(describe_files(folder))
        if not files:
            raise CorruptModel(f"the method saved no file for run {run_id}")
        refuse_unknown_kinds(file.path for file in files)
        beside = folder.parent / f"{folder.name}.mlmodel"
        beside.mkdir(exist_ok=True)
        payload = write_flavor(folder, beside)
        facts = facts_of(folder, files)
        described = {"files": [asdict(file) for file in files], "facts": asdict(facts)}
        manifest = json.dumps({"payload": payload, **described})
        (beside / _MANIFEST).write_text(manifest)
        self._client.writing.set_tag(run_id, "es.manifest.sha256", hash_of(manifest))
        self._client.writing.set_tag(run_id, "es.model", "uploading")
        self._upload(run_id, folder, f"{MODEL_FOLDER}/{payload}")
        self._upload(run_id, beside, MODEL_FOLDER)
        return self._locate(run_id, payload, files, facts)

    def _upload(self, run_id: str, folder: Path, path: str) -> None:
        """Upload a folder; where artifacts are local files, they share the bytes with it."""
        uri = self._client.artifact_uri(run_id)
        local = local_folder(uri)
        if local is not None:
            self._client.check()
            link_tree(folder, local / path, self._client.check)
            return
        found = repository(uri)
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            target = Path(path, file.relative_to(folder)).parent.as_posix()
            self._client.check()
            self._client.patiently(partial(found.log_artifact, str(file), target))

    def confirm(self, model: StoredModel) -> None:
        """Mark an uploaded model as stored, once it was read back and found good."""
        self._client.writing.set_tag(model.run_id, "es.model", "stored")

    def download(self, model: StoredModel, folder: Path) -> None:
        """Bring a model's files into a new `folder`, to be read and deleted, not written to.

        Raises CorruptModel if one is not as saved."""
        local = local_folder(model.artifact_uri)
        with self.told_gone(f"the model of run {model.run_id}"):
            if local is None:
                folder.mkdir(parents=True)
                found = repository(model.artifact_uri)
                self._client.patiently(partial(found.download_artifacts, "", str(folder)))
            else:
                require_plain(local)
                link_tree(local, folder)
        refuse_unknown_kinds(file.path for file in model.files)
        found = {file.path: file for file in describe_files(folder)}
        for file in model.files:
            if found.pop(file.path, None) != file:
                raise CorruptModel(
                    f"{file.path} of the model of run {model.run_id} is missing or is not what "
                    "was saved: delete the run, or restore the file from a backup"
                )
        for stranger in found:  # nobody saved it: nobody shall load it
            (folder / stranger).unlink()

    def stored(self, run_id: str) -> StoredModel:
        """Return where a run's model lies, and its files as they were saved.

        Raises CorruptModel when the list of them is not the one that was written."""
        with self.told_gone(f"the model of run {run_id}"):
            place = f"{self._client.artifact_uri(run_id)}/{MODEL_FOLDER}/{_MANIFEST}"
            text = self._client.patiently(partial(mlflow.artifacts.load_text, place))
        expected = self._client.reading.get_run(run_id).data.tags.get("es.manifest.sha256")
        if expected is not None and hash_of(text) != expected:
            raise CorruptModel(
                f"{_MANIFEST} of the model of run {run_id} is not what was saved: delete the run, "
                "or restore the file from a backup"
            )
        manifest = json.loads(text)
        files = tuple(ModelFile(**file) for file in manifest["files"])
        facts = ModelFacts(**manifest["facts"]) if "facts" in manifest else None
        return self._locate(run_id, manifest["payload"], files, facts)

    def foreign(self, version: Any) -> StoredModel:
        """Return a sentence-transformers model that somebody else registered, as it lies there."""
        name = f"models:/{version.name}/{version.version}"
        with self.told_gone(name), tempfile.TemporaryDirectory() as scratch:
            uri = self._client.reading.get_model_version_download_uri(version.name, version.version)
            card = repository(uri).download_artifacts("MLmodel", scratch)
            flavors = Model.load(card).flavors
            if "sentence_transformers" not in flavors:
                raise CorruptModel(
                    f"it was not stored by Embedding Studio, and of the kinds {sorted(flavors)} "
                    "only sentence_transformers can be started from"
                )
            place = f"{uri}/{PAYLOAD}"
            folder = local_folder(place)
            if folder is None:
                self._client.patiently(partial(repository(place).download_artifacts, "", scratch))
                folder = Path(scratch)
                Path(card).unlink()
            require_plain(folder)
            files = tuple(describe_files(folder))
            facts = facts_of(folder, files)
        refuse_unknown_kinds(file.path for file in files)
        return StoredModel(name, place, files, facts)

    def delete(self, run_id: str) -> None:
        """Delete the model files of one run, if it is there and has any. Repeating it is safe. What
        somebody else registered in MLflow stays: it is no run of ours."""
        with unless_gone():
            self.delete_of(self._client.reading.get_run(run_id))

    def delete_of(self, run: Run) -> None:
        """Delete the model files of a run, if it has any."""
        if run.data.tags.get("es.model") in ("uploading", "stored"):
            self.delete_files(run)

    def delete_files(self, run: Run) -> None:
        """Delete what is in the model folder of a run, whatever its tag says."""
        self.delete_artifacts(run, MODEL_FOLDER)
        with unless_gone():  # the run, with its iteration
            self._client.writing.set_tag(run.info.run_id, "es.model", "deleted")

    def delete_artifacts(self, run: Run, folder: str = "") -> None:
        """Delete the artifacts of a run, or one folder of them. Repeating it is safe, and so is
        another worker's doing the same at the same time."""
        self._client.check()
        local = local_folder(run.info.artifact_uri)
        if local is not None:
            remove_tree(local / folder)
            return
        delete = repository(run.info.artifact_uri).delete_artifacts
        self._client.patiently(partial(delete, folder or None))

    @contextmanager
    def told_gone(self, what: str) -> Iterator[None]:
        """Around reading files: raises CorruptModel when they are not there, OSError when it is
        the disk they are copied to that is full."""
        try:
            yield
        except CorruptModel:
            raise
        except (OSError, MlflowException) as error:
            if self._client.is_outage(error):
                raise
            if (full := os.strerror(errno.ENOSPC)) in str(error):  # where they are copied to
                raise OSError(errno.ENOSPC, f"{full} for a copy of the files of {what}") from error
            why = str(error).strip().splitlines()[-1]  # MLflow tells more lines, for its own people
            raise CorruptModel(f"the files of {what} cannot be read: {why}") from error

    def _locate(
        self,
        run_id: str,
        payload: str,
        files: tuple[ModelFile, ...],
        facts: ModelFacts | None,
    ) -> StoredModel:
        place = f"{self._client.artifact_uri(run_id)}/{MODEL_FOLDER}/{payload}"
        return StoredModel(run_id, place, files, facts)
