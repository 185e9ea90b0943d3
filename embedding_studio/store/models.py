"""Registered models as they are kept; one document for each project and name, which make its id."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from embedding_studio.errors import Conflict, NotFound
from embedding_studio.models import CHAMPION, ModelVersion, RegisteredModel, split_reference
from embedding_studio.projects import split_owner
from embedding_studio.store.codec import Codec
from embedding_studio.store.documents import Document, Documents, Filter, Kind

MODELS = Kind("models", indexes=(("project",),), sparse=(("is_shared",),))
MODEL = Codec(RegisteredModel)


class Models:
    """The registered models of a project, and, for workers, of all of them."""

    def __init__(self, documents: Documents, project: str) -> None:
        self._documents = documents
        self._project = project

    def find(self, name: str) -> RegisteredModel | None:
        """Return what this project has registered under a name, None if nothing yet."""
        found = self._documents.find_one(MODELS, self._which(name))
        return None if found is None else model_of(found)

    def readable(self, name: str) -> RegisteredModel | None:
        """Return what this project has registered under a name, or what another one shares with it
        under `owner:name`, as it is seen here. None if there is no version, or it is not shared."""
        owner, own = split_owner(self._project, name)
        found = Models(self._documents, owner).find(own)
        return found.seen_in(self._project) if found and found.versions else None

    def change(self, changed: RegisteredModel) -> RegisteredModel | None:
        """Put it in the place of what is kept under its name, its revision one higher.

        None, and nothing changed, unless what is kept still has the revision that `changed` brings
        along (0: nothing is kept yet). After a lost answer that may be this call's own doing."""
        after = replace(changed, project=self._project, revision=changed.revision + 1)
        document = document_of(after)
        if changed.revision == 0:
            which = self._which(changed.name)
            is_kept = self._documents.insert_one(MODELS, {**which, **document})
        else:
            as_seen: Filter = {**self._which(changed.name), "revision": changed.revision}
            is_kept = self._documents.change(MODELS, as_seen, set=document) is not None
        # as it is read again, with times cut to the millisecond: claims are compared by them
        return model_of(document) if is_kept else None

    def update(
        self,
        name: str,
        rule: Callable[[RegisteredModel], RegisteredModel],
        fine_tuning_method: str | None = None,
    ) -> RegisteredModel:
        """Change what is registered under a name by a rule, again if somebody else was quicker.

        fine_tuning_method: of a model that is not there yet; None: it is named like its method.
        A rule that gives back what it was given writes nothing; so does one that raises. It is safe
        to repeat if the rule is."""
        while True:
            seen = self.find(name) or RegisteredModel(
                self._project, name, fine_tuning_method or name
            )
            wanted = rule(seen)
            if wanted == seen:
                return seen
            if (changed := self.change(wanted)) is not None:
                return changed

    def referred(self, reference: str) -> ModelVersion | None:
        """Return the version that `name`, `name/3` or `name@champion` names, of what is readable;
        None where no model has that name. Raises NotFound for a version that there is not, and for
        a model that is not shared with this project; Conflict for a version without files."""
        name, version = split_reference(reference)
        is_version = version is None or version == CHAMPION or version.isdigit()
        model = self.readable(name) if is_version and name else None
        if model is None:
            if is_version and ":" in name:  # neither a hub's model nor a folder has such a name
                raise NotFound(f"no model {name!r} is shared with project {self._project!r}")
            return None
        found = model.named(version or CHAMPION)
        if found.removed_at is not None:
            raise Conflict(f"the files of version {found.number} of {name!r} were removed")
        return found

    def of_project(self) -> list[RegisteredModel]:
        """Return this project's registered models by their names."""
        whose: Filter = {"project": self._project}
        found = map(model_of, self._documents.find(MODELS, whose, sort=("id",)))
        return [model for model in found if model.versions]

    def shared(self) -> list[RegisteredModel]:
        """Return what other projects share with this one, as it is seen here, by owner and name."""
        kept = map(model_of, self._documents.find(MODELS, {"is_shared": True}, sort=("id",)))
        others = [model for model in kept if model.project != self._project and model.versions]
        return [seen for model in others if (seen := model.seen_in(self._project)) is not None]

    def all(self, are_mirrored: bool | None = None) -> list[RegisteredModel]:
        """Return the registered models of all projects; only those whose champion MLflow's alias
        shows, or does not, if that is asked."""
        where: Filter = {} if are_mirrored is None else {"is_mirrored": are_mirrored}
        return [*map(model_of, self._documents.find(MODELS, where, sort=("id",)))]

    def _which(self, name: str) -> dict[str, str]:
        return {"id": f"{self._project}/{name}"}  # a project's id has no slash


def document_of(model: RegisteredModel) -> Document:
    """Return a model as it is kept, but for its id."""
    # absent where it is not: what is looked through is what is shared
    is_shared = True if model.shared_with else None
    return {**MODEL.encode(model), "is_mirrored": model.is_mirrored, "is_shared": is_shared}


def model_of(document: Mapping[str, Any]) -> RegisteredModel:
    """Return the model of a document; those from before models had names are their methods'."""
    former = {name: document.get("method") for name in ("name", "fine_tuning_method")}
    return MODEL.decode({**former, **document})
