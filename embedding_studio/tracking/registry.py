"""MLflow's registry: the versions of models, and the alias `champion`."""

from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from embedding_studio.errors import CorruptModel
from embedding_studio.projects import RegisteredName
from embedding_studio.tasks import StoredModel
from embedding_studio.tracking import story
from embedding_studio.tracking.client import Client, pages, unless_gone
from embedding_studio.tracking.models import MODEL_FOLDER, Models

CHAMPION = "champion"


class Registry:
    """The registered models, their versions and champions."""

    def __init__(self, client: Client, models: Models) -> None:
        self._client = client
        self._models = models

    def champion(self, name: RegisteredName) -> StoredModel | None:
        """Return the model behind the alias `champion` of a registered model.

        Raises CorruptModel when it is neither ours nor of sentence-transformers, or when its files
        are gone."""
        number = self.champion_version(name)
        if number is None:
            return None
        version = self._client.reading.get_model_version(name, str(number))
        try:
            with self._models.told_gone(f"the run of version {version.version}"):
                run = self._client.reading.get_run(version.run_id) if version.run_id else None
            if run is not None and "es.model" in run.data.tags:
                return self._models.stored(run.info.run_id)
            return self._models.foreign(version)
        except CorruptModel as error:
            raise CorruptModel(
                f"version {version.version} of {name!r} in MLflow is its champion, but "
                f"{error}: {story.OTHER_CHAMPION}"
            ) from error

    def champion_version(self, name: RegisteredName) -> int | None:
        """Return the number of the version that the alias `champion` shows."""
        return self.champion_versions(f"name = '{name}'").get(name)

    def champion_versions(self, which: str | None = None) -> dict[RegisteredName, int]:
        """Return the versions behind the alias `champion`, by the names of registered models."""
        return {
            RegisteredName(model.name): int(model.aliases[CHAMPION])
            for model in pages(self._client.reading.search_registered_models, which)
            if CHAMPION in model.aliases
        }

    def register(self, name: RegisteredName, model: StoredModel, why: str) -> int:
        """Register a model as a version, if it is none yet, and return its number. Repeating it is
        safe. The alias stays where it is."""
        try:
            self._client.writing.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        is_it = f"name = '{name}' AND run_id = '{model.run_id}'"
        for registered in self._client.reading.search_model_versions(is_it):
            return int(registered.version)
        with self._models.told_gone(f"the model of run {model.run_id}"):
            run = self._client.reading.get_run(model.run_id)
        made = self._client.writing.create_model_version(
            name,
            f"{run.info.artifact_uri}/{MODEL_FOLDER}",
            run_id=model.run_id,
            description=why,
            tags=story.version_tags(run),
        )
        return int(made.version)

    def describe(self, name: RegisteredName, version: int, why: str) -> None:
        """Say anew of a version why it is there."""
        self._client.writing.update_model_version(name, str(version), why)

    def has_version(self, name: RegisteredName, version: int) -> bool:
        """Return whether a version is registered under this number."""
        with unless_gone():
            self._client.reading.get_model_version(name, str(version))
            return True
        return False

    def set_champion(self, name: RegisteredName, version: int) -> None:
        """Point the alias `champion` to a version."""
        self._client.writing.set_registered_model_alias(name, CHAMPION, str(version))

    def delete_version(self, name: RegisteredName, number: str) -> None:
        """Delete a version; its files are not touched. Repeating it is safe."""
        with unless_gone():
            self._client.writing.delete_model_version(name, number)

    def delete_versions_of(self, name: RegisteredName, run_id: str) -> None:
        """Delete the versions that are a run's model; their files are not touched. Repeating it is
        safe."""
        is_it = f"name = '{name}' AND run_id = '{run_id}'"
        for version in list(self._client.reading.search_model_versions(is_it)):
            self.delete_version(name, str(version.version))

    def versions(self, name: RegisteredName) -> list[Any]:
        """Return all versions of a registered model, as MLflow has them."""
        return [*pages(self._client.reading.search_model_versions, f"name = '{name}'")]
