"""A method's models in MLflow: their files on runs, the initial ones, the registered champions."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

import mlflow
import requests
import stamina
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import (
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from embedding_studio.deletion import remove_tree
from embedding_studio.errors import CorruptModel
from embedding_studio.models import RegisteredModel
from embedding_studio.projects import RegisteredName
from embedding_studio.tasks import ModelFile, StoredModel
from embedding_studio.tracking import story
from embedding_studio.tracking.flavor import PAYLOAD, write_flavor
from embedding_studio.tracking.local import speed_up

Result = TypeVar("Result")

CHAMPION = "champion"
OTHER_CHAMPION = (
    "roll back to another version, or point the alias `champion` in MLflow to one that can be read"
)

_ATTEMPTS = 4  # of a call of many requests, each of which MLflow's client repeats by itself
MODEL_FOLDER = "model"  # the artifact folder of a run's model: an MLflow model
_MANIFEST = "files.json"  # in it: the payload's folder, and path, size and hash of each file
_KINDS = frozenset({".json", ".jinja", ".md", ".model", ".npy", ".safetensors", ".txt"})
"""What files of a model may be: reading one runs no code. .model: a SentencePiece vocabulary."""
_PAGE = 1000
_UI_VIEW = {"mlflow.experimentKind": "custom_model_development"}  # runs and metrics, no LLM traces


def _allow() -> None:
    """Guard nothing."""


class _GuardedClient(MlflowClient):
    """MLflow's client, which calls `check` before each call that changes something."""

    def __init__(self, tracking_uri: str, check: Callable[[], None]) -> None:
        self._before_change = check
        super().__init__(tracking_uri)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith(("_", "get_", "search_", "download_")) or not callable(value):
            return value

        def checked(*args: Any, **kwargs: Any) -> Any:
            self._before_change()
            return value(*args, **kwargs)

        return checked


class Models:
    """One MLflow server or local database.

    artifacts_folder: where model files go when MLflow is a local database; a server decides
    for itself.
    """

    def __init__(self, tracking_uri: str, artifacts_folder: Path) -> None:
        mlflow.set_tracking_uri(tracking_uri)  # the artifact repositories read the global one
        self.settle = speed_up(tracking_uri)
        self._check = _allow
        self._client = _GuardedClient(tracking_uri, _allow)
        self._is_server = tracking_uri.startswith("http")
        self._artifacts_folder = None if self._is_server else artifacts_folder
        self._artifact_uris: dict[str, str] = {}  # by run

    def guarded(self, check: Callable[[], None]) -> Self:
        """Return the same place, asking `check` before every write: what it raises prevents it.

        So a worker that slept past its lease changes nothing when it wakes up.
        """
        guarded = copy(self)
        guarded._check = check
        guarded._client = _GuardedClient(self._client.tracking_uri, check)
        return guarded

    def is_outage(self, error: BaseException) -> bool:
        """Return whether an error says that the MLflow server is out of order, not that a call is
        wrong. A local database is so only while another process, a frozen one say, holds its lock:
        its other errors are the machine's."""
        if not self._is_server:
            return isinstance(error, MlflowException) and "database is locked" in str(error)
        if isinstance(error, MlflowException):
            return _http_status(error) >= 500
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return int(error.response.status_code) >= 500
        return isinstance(error, requests.RequestException)

    def ping(self) -> None:
        """Return if MLflow answers, else raise what `is_outage` knows."""
        self._client.search_experiments(max_results=1)

    def _patiently(self, call: Callable[[], Result]) -> Result:
        """Make a call that may be repeated, again and again while the server is out of order.

        MLflow's client repeats single requests; this is for calls of many, such as an upload.
        """
        for attempt in stamina.retry_context(
            on=self.is_outage, attempts=_ATTEMPTS, wait_initial=0.5, wait_max=10.0
        ):
            with attempt:
                return call()
        raise AssertionError("stamina ends with an answer or an error")

    # -- models --------------------------------------------------------------------------------

    def store_initial_model(
        self, name: RegisteredName, folder: Path, task_id: str = ""
    ) -> StoredModel:
        """Upload what a method starts from, as run `initial_model` of `iteration / initial`.

        The same files are uploaded once. What an earlier attempt of this task left unfinished is
        ended; what was stored before with other files is left to the sweep.
        """
        experiment = self._find_experiment({"es.kind": "initial"})
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._create_experiment("iteration / initial", {"es.kind": "initial"})
        )
        files = tuple(_describe_files(folder))
        former = [
            run for run in self._runs(experiment_id) if run.data.tags.get("es.method") == name
        ]
        for run in former:
            if run.data.tags.get("es.model") == "stored":
                with suppress(CorruptModel):  # its files are gone: they are stored anew
                    stored = self.stored_model(run.info.run_id)
                    if stored.files == files:
                        self._end_initial_runs(experiment_id, task_id, stored.run_id)
                        return stored
        run_id = self._create_run(
            experiment_id, "initial_model", {"es.method": name, "es.task_id": task_id}
        )
        model = self.upload_model(run_id, folder)
        self.confirm_model(model)
        self._end_initial_runs(experiment_id, task_id, run_id)
        return model

    def _end_initial_runs(self, experiment_id: str, task_id: str, stored_run_id: str) -> None:
        """End this task's RUNNING uploads: the good one as FINISHED, others with their files gone.

        Others are a dead attempt's, or a request's whose answer was lost and that was repeated."""
        for run in list(self._runs(experiment_id)):
            if run.info.status != "RUNNING":
                continue
            if run.info.run_id == stored_run_id:
                self._client.set_terminated(stored_run_id)
            elif run.data.tags.get("es.task_id") == task_id:
                self._delete_model(run)
                self._client.set_terminated(run.info.run_id, "KILLED")

    def upload_model(self, run_id: str, folder: Path) -> StoredModel:
        """Upload a folder that a method saved, as an MLflow model with the hash of every file.

        A sentence-transformers folder gets MLflow's flavor for it. The folder's files may be
        deleted afterwards but not written to. Raises CorruptModel when the folder is empty or holds
        files of a kind that may run code when they are read, such as pickles.
        """
        files = tuple(_describe_files(folder))
        if not files:
            raise CorruptModel(f"the method saved no file for run {run_id}")
        _refuse_unknown_kinds(file.path for file in files)
        beside = folder.parent / f"{folder.name}.mlmodel"
        beside.mkdir(exist_ok=True)
        payload = write_flavor(folder, beside)
        manifest = json.dumps({"payload": payload, "files": [asdict(file) for file in files]})
        (beside / _MANIFEST).write_text(manifest)
        self._client.set_tag(run_id, "es.manifest.sha256", _hash(manifest))
        self._client.set_tag(run_id, "es.model", "uploading")
        self._upload(run_id, folder, f"{MODEL_FOLDER}/{payload}")
        self._upload(run_id, beside, MODEL_FOLDER)
        return self._locate(run_id, payload, files)

    def _upload(self, run_id: str, folder: Path, path: str) -> None:
        """Upload a folder; where artifacts are local files, they share the bytes with it."""
        uri = self._artifact_uri(run_id)
        local = _local_folder(uri)
        if local is not None:
            self._check()
            _link_tree(folder, local / path, self._check)
            return
        repository = _repository(uri)
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            target = Path(path, file.relative_to(folder)).parent.as_posix()
            self._check()
            self._patiently(partial(repository.log_artifact, str(file), target))

    def confirm_model(self, model: StoredModel) -> None:
        """Mark an uploaded model as stored, once it was read back and found good."""
        self._client.set_tag(model.run_id, "es.model", "stored")

    def download_model(self, model: StoredModel, folder: Path) -> None:
        """Bring a model's files into a new `folder`, to be read and deleted, not written to.

        Raises CorruptModel if one is not as saved.
        """
        local = _local_folder(model.artifact_uri)
        with self._told_gone(f"the model of run {model.run_id}"):
            if local is None:
                folder.mkdir(parents=True)
                repository = _repository(model.artifact_uri)
                self._patiently(partial(repository.download_artifacts, "", str(folder)))
            else:
                _require_plain(local)
                _link_tree(local, folder)
        _refuse_unknown_kinds(file.path for file in model.files)
        found = {file.path: file for file in _describe_files(folder)}
        for file in model.files:
            if found.pop(file.path, None) != file:
                raise CorruptModel(
                    f"{file.path} of the model of run {model.run_id} is missing or is not what "
                    "was saved: delete the run, or restore the file from a backup"
                )
        for stranger in found:  # nobody saved it: nobody shall load it
            (folder / stranger).unlink()

    def stored_model(self, run_id: str) -> StoredModel:
        """Return where a run's model lies, and its files as they were saved.

        Raises CorruptModel when the list of them is not the one that was written."""
        with self._told_gone(f"the model of run {run_id}"):
            place = f"{self._artifact_uri(run_id)}/{MODEL_FOLDER}/{_MANIFEST}"
            text = self._patiently(partial(mlflow.artifacts.load_text, place))
        expected = self._client.get_run(run_id).data.tags.get("es.manifest.sha256")
        if expected is not None and _hash(text) != expected:
            raise CorruptModel(
                f"{_MANIFEST} of the model of run {run_id} is not what was saved: delete the run, "
                "or restore the file from a backup"
            )
        manifest = json.loads(text)
        files = tuple(ModelFile(**file) for file in manifest["files"])
        return self._locate(run_id, manifest["payload"], files)

    def delete_model(self, run_id: str) -> None:
        """Delete the model files of one run, if it has any. Repeating it is safe."""
        self._delete_model(self._client.get_run(run_id))

    def keep_best(
        self, experiment_id: str, best_run_id: str, kept_run_ids: Collection[str] = ()
    ) -> None:
        """Tag one run of an experiment as its best, then delete the model files of all others.

        The runs stay, tagged; bytes are gone from the disk or object store. Repeating it is safe.
        kept_run_ids: whose models are those of registered versions, and stay.
        """
        runs = list(self._runs(experiment_id))
        self._client.set_tag(best_run_id, "es.is_best", "true")
        for run in runs:
            if run.info.run_id == best_run_id:
                self._rename(run, story.name_of_best(run.info.run_name))
                continue
            if "es.is_best" in run.data.tags:
                self._rename(run, story.name_of_former_best(run.info.run_name))
                self._client.delete_tag(run.info.run_id, "es.is_best")
            if run.info.run_id not in kept_run_ids:
                self._delete_model(run)

    def _rename(self, run: Run, name: str) -> None:
        if run.info.run_name != name:
            self._client.set_tag(run.info.run_id, "mlflow.runName", name)

    # -- the registry --------------------------------------------------------------------------

    def champion(self, name: RegisteredName) -> StoredModel | None:
        """Return the model behind the alias `champion` of a method's registered model.

        Raises CorruptModel when it is neither ours nor of sentence-transformers, or when its files
        are gone.
        """
        number = self.champion_version(name)
        if number is None:
            return None
        version = self._client.get_model_version(name, str(number))
        try:
            with self._told_gone(f"the run of version {version.version}"):
                run = self._client.get_run(version.run_id) if version.run_id else None
            if run is not None and "es.model" in run.data.tags:
                return self.stored_model(run.info.run_id)
            return self._foreign_model(version)
        except CorruptModel as error:
            raise CorruptModel(
                f"version {version.version} of {name!r} in MLflow is its champion, but "
                f"{error}: {OTHER_CHAMPION}"
            ) from error

    def _foreign_model(self, version: Any) -> StoredModel:
        """Return a sentence-transformers model that somebody else registered, as it lies there."""
        name = f"models:/{version.name}/{version.version}"
        with self._told_gone(name), tempfile.TemporaryDirectory() as scratch:
            uri = self._client.get_model_version_download_uri(version.name, version.version)
            card = _repository(uri).download_artifacts("MLmodel", scratch)
            flavors = Model.load(card).flavors
            if "sentence_transformers" not in flavors:
                raise CorruptModel(
                    f"it was not stored by Embedding Studio, and of the kinds {sorted(flavors)} "
                    "only sentence_transformers can be started from"
                )
            place = f"{uri}/{PAYLOAD}"
            folder = _local_folder(place)
            if folder is None:
                self._patiently(partial(_repository(place).download_artifacts, "", scratch))
                folder = Path(scratch)
                Path(card).unlink()
            _require_plain(folder)
            files = tuple(_describe_files(folder))
        _refuse_unknown_kinds(file.path for file in files)
        return StoredModel(name, place, files)

    @contextmanager
    def _told_gone(self, what: str) -> Iterator[None]:
        """Around reading files: raises CorruptModel when they are not there, OSError when it is
        the disk they are copied to that is full."""
        try:
            yield
        except CorruptModel:
            raise
        except (OSError, MlflowException) as error:
            if self.is_outage(error):
                raise
            if (full := os.strerror(errno.ENOSPC)) in str(error):  # where they are copied to
                raise OSError(errno.ENOSPC, f"{full} for a copy of the files of {what}") from error
            why = str(error).strip().splitlines()[-1]  # MLflow tells more lines, for its own people
            raise CorruptModel(f"the files of {what} cannot be read: {why}") from error

    def champion_version(self, name: RegisteredName) -> int | None:
        """Return the number of the version that the alias `champion` shows."""
        return self.champion_versions(f"name = '{name}'").get(name)

    def champion_versions(self, which: str | None = None) -> dict[RegisteredName, int]:
        """Return the versions behind the alias `champion`, by the names of registered models."""
        return {
            RegisteredName(model.name): int(model.aliases[CHAMPION])
            for model in _pages(self._client.search_registered_models, which)
            if CHAMPION in model.aliases
        }

    def register_version(self, name: RegisteredName, model: StoredModel, why: str) -> int:
        """Register a model as a version, if it is none yet, and return its number. Repeating it is
        safe. The alias stays where it is."""
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        is_it = f"name = '{name}' AND run_id = '{model.run_id}'"
        for registered in self._client.search_model_versions(is_it):
            return int(registered.version)
        with self._told_gone(f"the model of run {model.run_id}"):
            run = self._client.get_run(model.run_id)
        made = self._client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{MODEL_FOLDER}",
            run_id=model.run_id,
            description=why,
            tags=story.version_tags(run),
        )
        return int(made.version)

    def has_version(self, name: RegisteredName, version: int) -> bool:
        """Return whether a version is registered under this number."""
        with unless_gone():
            self._client.get_model_version(name, str(version))
            return True
        return False

    def set_champion(self, name: RegisteredName, version: int) -> None:
        """Point the alias `champion` to a version."""
        self._client.set_registered_model_alias(name, CHAMPION, str(version))

    def _versions(self, name: RegisteredName) -> Sequence[Any]:
        return [*_pages(self._client.search_model_versions, f"name = '{name}'")]

    # -- what crashes left ---------------------------------------------------------------------

    def remove_orphans(
        self, models: Sequence[RegisteredModel], dry_run: bool = False
    ) -> Iterator[str]:
        """Delete model files that no run stands for, and tell of each; dry_run: only tell.

        Those are uploads that were never finished, files of experiments that were removed, initial
        models that were stored twice, and registered versions without files.
        models: all that are registered; what they keep stays, and so does what is somebody else's.
        """
        kept_run_ids = {run_id for model in models for run_id in model.kept_run_ids}
        ours = {model.name: model for model in models}
        for experiment in self._search_experiments({"es.models": "kept"}):
            yield from self._remove_unfinished_uploads(experiment, dry_run)
        for experiment in self._search_experiments({"es.kind": "initial"}):
            yield from self._remove_unfinished_uploads(experiment, dry_run)
            yield from self._remove_repeated_initial_models(experiment, kept_run_ids, dry_run)
        for experiment in self._removed_lately():
            yield from _remove_folder(experiment, dry_run)
        for registered in _pages(self._client.search_registered_models):
            if registered.name not in ours:
                continue
            spared = {*map(int, registered.aliases.values()), *ours[registered.name].kept_numbers}
            for entry in self._versions(registered.name):
                number = str(entry.version)
                if int(number) not in spared and entry.run_id and self._is_gone(entry.run_id):
                    yield f"version {number} of {registered.name} has no files"
                    if not dry_run:
                        with unless_gone():
                            self._client.delete_model_version(registered.name, number)

    def _remove_unfinished_uploads(self, experiment: Experiment, dry_run: bool) -> Iterator[str]:
        for run in list(self._runs(experiment.experiment_id)):
            state = run.data.tags.get("es.model")
            local = _local_folder(run.info.artifact_uri)
            has_files = local is not None and (local / MODEL_FOLDER).exists()
            is_leftover = state == "uploading" or (state != "stored" and has_files)
            if run.info.status != "RUNNING" and is_leftover:
                yield f"run {run.info.run_id} has model files but no model"
                if not dry_run:
                    self._delete_model_files(run)

    def _remove_repeated_initial_models(
        self, experiment: Experiment, kept_run_ids: Collection[str], dry_run: bool
    ) -> Iterator[str]:
        """Keep those of registered versions, and one of a method that has none: two workers may
        have stored their first at once. One that was stored a moment ago may yet be registered."""
        an_hour_ago = (time.time() - 3600) * 1000
        stored = [
            run
            for run in self._runs(experiment.experiment_id)  # the latest first, as is looked up
            if run.data.tags.get("es.model") == "stored"
        ]
        having = {r.data.tags["es.method"] for r in stored if r.info.run_id in kept_run_ids}
        for run in stored:
            name = run.data.tags["es.method"]
            is_old = (run.info.end_time or an_hour_ago) < an_hour_ago
            if run.info.run_id not in kept_run_ids and name in having and is_old:
                yield f"run {run.info.run_id} repeats the initial model of {name}"
                if not dry_run:
                    self._delete_model(run)
            having.add(name)

    def _is_gone(self, run_id: str) -> bool:
        """Return whether a run, or its model, was deleted."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return True
        is_deleted: bool = run.info.lifecycle_stage != "active"
        return is_deleted or run.data.tags.get("es.model") == "deleted"

    # -- the client's rough edges ------------------------------------------------------------------

    def _delete_model(self, run: Run) -> None:
        if run.data.tags.get("es.model") in ("uploading", "stored"):
            self._delete_model_files(run)

    def _delete_model_files(self, run: Run) -> None:
        self._delete_files(run, MODEL_FOLDER)
        with unless_gone():  # the run, with its iteration
            self._client.set_tag(run.info.run_id, "es.model", "deleted")

    def _delete_files(self, run: Run, folder: str = "") -> None:
        """Delete the artifacts of a run, or one folder of them. Repeating it is safe, and so is
        another worker's doing the same at the same time."""
        self._check()
        local = _local_folder(run.info.artifact_uri)
        if local is not None:
            remove_tree(local / folder)
            return
        delete = _repository(run.info.artifact_uri).delete_artifacts
        self._patiently(partial(delete, folder or None))

    def _runs(self, experiment_id: str) -> Iterator[Run]:
        return _pages(self._client.search_runs, [experiment_id], max_results=_PAGE)

    def _find_experiment(self, tags: Mapping[str, str]) -> Experiment | None:
        return next(self._search_experiments(tags), None)

    def _search_experiments(
        self,
        tags: Mapping[str, str],
        order_by: Sequence[str] = (),
        page_size: int = _PAGE,
        view_type: int = ViewType.ACTIVE_ONLY,
        since: int = 0,
    ) -> Iterator[Experiment]:
        """Yield the experiments with these tags, fetched as far as they are asked for.

        since: when they were made or removed at the earliest, in ms since the epoch."""
        wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        found = _pages(
            self._client.search_experiments,
            view_type=view_type,
            filter_string=" AND ".join([*wanted, f"last_update_time >= {since}"]),
            order_by=list(order_by),
            max_results=page_size,
        )
        # MLflow reads tags by a second query: those of what was removed between the two are missing
        return (experiment for experiment in found if tags.items() <= experiment.tags.items())

    def _removed_lately(self) -> Iterator[Experiment]:
        """Yield the iterations that were removed within a week: MLflow forgets none of them."""
        a_week_ago = int((time.time() - 7 * 86400) * 1000)
        return self._search_experiments(
            {"es.kind": "iteration"}, view_type=ViewType.DELETED_ONLY, since=a_week_ago
        )

    def _create_experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """Create an experiment under a name like `name`: those of deleted ones stay taken."""
        location = None
        if self._artifacts_folder is not None:
            slug = re.sub(r"\W+", "-", name).strip("-").lower()
            location = str(self._artifacts_folder / f"{slug}-{uuid.uuid4().hex[:8]}")
        suffix = 1
        while True:
            given = name if suffix == 1 else f"{name} / {suffix}"
            try:
                created: str = self._client.create_experiment(given, location, {**tags, **_UI_VIEW})
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
                there = self._client.get_experiment_by_name(given)
                if (  # made, but the answer was lost
                    there is not None
                    and there.lifecycle_stage == "active"
                    and tags.items() <= there.tags.items()
                ):
                    return str(there.experiment_id)
                suffix += 1
            else:
                return created

    def _artifact_uri(self, run_id: str) -> str:
        if run_id not in self._artifact_uris:  # a run's never changes
            self._artifact_uris[run_id] = self._client.get_run(run_id).info.artifact_uri
        return self._artifact_uris[run_id]

    def _create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(experiment_id, run_name=name, tags=dict(tags))
        run_id: str = run.info.run_id
        self._artifact_uris[run_id] = run.info.artifact_uri
        return run_id

    def _locate(self, run_id: str, payload: str, files: tuple[ModelFile, ...]) -> StoredModel:
        return StoredModel(run_id, f"{self._artifact_uri(run_id)}/{MODEL_FOLDER}/{payload}", files)


def _pages(search: Callable[..., Any], *args: Any, **options: Any) -> Iterator[Any]:
    """Yield what a search of MLflow's client finds, page after page."""
    token = None
    while True:
        page = search(*args, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def _http_status(error: MlflowException) -> int:
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
    return status


@contextmanager
def unless_gone() -> Iterator[None]:
    """Around what is about a removal: what is gone already, another worker removed meanwhile."""
    try:
        yield
    except MlflowException as error:
        is_deleted = "must be in the 'active' state" in str(error)  # a run or an experiment
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST) and not is_deleted:
            raise


def _remove_folder(experiment: Experiment, dry_run: bool) -> Iterator[str]:
    """Delete the local files of an experiment that was removed, if there still are any."""
    folder = _local_folder(experiment.artifact_location)
    if folder is None or not any(files for _, _, files in os.walk(folder)):
        return
    yield f"{folder} holds files of experiment {experiment.experiment_id}, which was removed"
    if not dry_run:
        remove_tree(folder, ignore_errors=True)


def _repository(artifact_uri: str) -> Any:
    return get_artifact_repository(artifact_uri)  # untyped in mlflow


def _local_folder(artifact_uri: str) -> Path | None:
    """Return the folder behind an artifact URI if it is one of this machine."""
    repository = _repository(artifact_uri)
    is_local = isinstance(repository, LocalArtifactRepository)
    return Path(repository.artifact_dir) if is_local else None


def _link_tree(source: Path, target: Path, check: Callable[[], None] = _allow) -> None:
    """Give a folder's files a second name each, after a `check`; across file systems, a copy."""

    def link(file: str, name: str) -> None:
        check()
        if not Path(file).is_symlink():
            with suppress(OSError):
                os.link(file, name)
                return
        shutil.copyfile(file, name)

    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_unknown_kinds(paths: Iterable[str]) -> None:
    for path in paths:
        if PurePosixPath(path).suffix not in _KINDS:
            raise CorruptModel(
                f"{path!r} is no kind of file that a model may consist of: save weights as "
                f"safetensors, the rest as one of {', '.join(sorted(_KINDS))}"
            )


def _require_plain(folder: Path) -> None:
    """Raise CorruptModel for what is neither file nor folder: a link may lead anywhere, and a FIFO
    or a device has no end."""
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            name = path.relative_to(folder).as_posix()
            raise CorruptModel(f"{name!r} is no plain file: a model has no links and no devices")


def _describe_files(folder: Path) -> Iterator[ModelFile]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            yield ModelFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)
