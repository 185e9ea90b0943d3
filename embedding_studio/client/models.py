"""Calls for registered models: their versions, what a person decides of them, and their files."""

from pathlib import Path
from urllib.parse import quote

from embedding_studio.client.connection import Connection
from embedding_studio.wire.models import (
    ModelSummary,
    ModelView,
    PromoteBody,
    RollbackBody,
    VersionView,
    WebhookBody,
)


class ModelCalls(Connection):
    """What tells of registered models, and changes which version is champion.

    A version is named by its number, or by the alias `champion`; a model that another project
    shares is `owner:name`."""

    def list_models(self) -> list[ModelSummary]:
        """Return the project's models by their names."""
        return self._get(list[ModelSummary], "/models")

    def get_model(self, name: str) -> ModelView:
        """Return a model with its versions and what became of its champion, newest first."""
        return self._get(ModelView, _path(name))

    def get_version(self, name: str, version: int | str = "champion") -> VersionView:
        """Return a version: its verdict, what it was made of, and what its files say."""
        return self._get(VersionView, _path(name, version))

    def promote(
        self,
        name: str,
        version: int | None = None,
        *,
        task_id: str | None = None,
        expected_champion: int | None = None,
        reason: str = "",
    ) -> ModelView:
        """Make a version, or a task's model, champion, whatever its verdict was: that of a task may
        be `wanted` until a worker has registered it."""
        body = PromoteBody.model_construct(
            version=version,
            task_id=task_id,
            expected_champion=expected_champion,
            reason=reason,
        )
        return self._post(ModelView, f"{_path(name)}/promote", body)

    def roll_back(self, name: str, version: int | None = None, reason: str = "") -> ModelView:
        """Make an earlier champion champion; None: the one whose place the present one took, or, if
        a model is `wanted`, the present one itself: it stays."""
        expected = None
        if version is None:  # named here: a retry after a lost answer must not go back once more
            found = self.get_model(name)
            version, expected = found.previous_version, found.champion
        body = RollbackBody.model_construct(
            version=version, expected_champion=expected, reason=reason
        )
        return self._post(ModelView, f"{_path(name)}/rollback", body)

    def set_webhook(self, name: str, url: str | None) -> ModelView:
        """Have changes of a model's champion told to an address, None: to none any more."""
        body = WebhookBody.model_construct(url=url)
        return self._post(ModelView, f"{_path(name)}/webhook", body)

    def delete_version(self, name: str, version: int) -> None:
        """Delete the files of a version that is not champion; it stays on record as removed."""
        self._call("DELETE", _path(name, version), fine=204)

    def share_model(self, name: str, project: str) -> ModelView:
        """Let another project read, serve and start from all versions of a model, as
        `owner:name`."""
        return self._put(ModelView, f"{_path(name)}/shares/{quote(project, safe='')}")

    def take_model_back(self, name: str, project: str) -> ModelView:
        """Share a model with that project no longer; what was made of it stays."""
        path = f"{_path(name)}/shares/{quote(project, safe='')}"
        return self._read(ModelView, self._call("DELETE", path))

    def download_version(self, name: str, folder: Path, version: int | str = "champion") -> None:
        """Write a version's files to `folder`, as `download_model` does."""
        self._download_model(f"{_path(name, version)}/download", folder)


def _path(name: str, version: int | str | None = None) -> str:
    path = f"/models/{quote(name, safe='')}"
    return path if version is None else f"{path}/versions/{quote(str(version), safe='')}"
