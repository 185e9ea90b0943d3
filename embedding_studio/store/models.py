"""Registered models as they are kept; one document for each project and method."""

from collections.abc import Callable
from dataclasses import replace

from embedding_studio.models import RegisteredModel
from embedding_studio.store.codec import Codec
from embedding_studio.store.documents import Document, Documents, Filter, Kind

MODELS = Kind("models", unique=(("project", "method"),))
MODEL = Codec(RegisteredModel)


class Models:
    """The registered models of a project, and, for workers, of all of them."""

    def __init__(self, documents: Documents, project: str) -> None:
        self._documents = documents
        self._project = project

    def find(self, method: str) -> RegisteredModel | None:
        """Return what this project has registered of a method, None if nothing yet."""
        found = self._documents.find_one(MODELS, self._which(method))
        return None if found is None else MODEL.decode(found)

    def change(self, changed: RegisteredModel) -> RegisteredModel | None:
        """Put it in the place of what is kept of its method, its revision one higher.

        None, and nothing changed, unless what is kept still has the revision that `changed` brings
        along (0: nothing is kept yet). After a lost answer that may be this call's own doing."""
        after = replace(changed, project=self._project, revision=changed.revision + 1)
        document = document_of(after)
        if changed.revision == 0:
            its_id = f"{self._project}/{changed.method}"  # a project's id has no slash
            is_kept = self._documents.insert_one(MODELS, {"id": its_id, **document})
        else:
            as_seen: Filter = {**self._which(changed.method), "revision": changed.revision}
            is_kept = self._documents.change(MODELS, as_seen, set=document) is not None
        # as it is read again, with times cut to the millisecond: claims are compared by them
        return MODEL.decode(document) if is_kept else None

    def update(
        self, method: str, rule: Callable[[RegisteredModel], RegisteredModel]
    ) -> RegisteredModel:
        """Change what is registered of a method by a rule, again if somebody else was quicker.

        A rule that gives back what it was given writes nothing; so does one that raises. It is safe
        to repeat if the rule is."""
        while True:
            seen = self.find(method) or RegisteredModel(self._project, method)
            wanted = rule(seen)
            if wanted == seen:
                return seen
            if (changed := self.change(wanted)) is not None:
                return changed

    def all(self, are_mirrored: bool | None = None) -> list[RegisteredModel]:
        """Return the registered models of all projects; only those whose champion MLflow's alias
        shows, or does not, if that is asked."""
        where: Filter = {} if are_mirrored is None else {"is_mirrored": are_mirrored}
        found = self._documents.find(MODELS, where, sort=("project", "method"))
        return [*map(MODEL.decode, found)]

    def _which(self, method: str) -> dict[str, str]:
        return {"project": self._project, "method": method}


def document_of(model: RegisteredModel) -> Document:
    """Return a model as it is kept, but for its id."""
    return {**MODEL.encode(model), "is_mirrored": model.is_mirrored}
