"""How sessions are erased, with all that is kept of them, one by one and out of any batch.

An erasure goes step by step. The project's document names the sessions of a step as `erasing`, in
the same atomic change that frees what they took; only then they are deleted, by whoever comes by.
`erasures` counts the steps: a step that was prepared before another one began is prepared anew."""

from collections.abc import Callable
from datetime import datetime

from embedding_studio.store.batches import Batches
from embedding_studio.store.documents import Document, Documents, Filter, above, among, first_id_at
from embedding_studio.store.early import EARLY
from embedding_studio.store.projects import PROJECTS
from embedding_studio.store.sessions import SESSIONS, Sessions, usage_of
from embedding_studio.users import Erased

AT_ONCE = 200
"""How many sessions a step erases at most."""
_FIELDS = ("id", "batch", "size", "events_size")


class Erasure:
    """What erases sessions of one project."""

    def __init__(self, documents: Documents, project: str) -> None:
        self._documents = documents
        self._project = project
        self._batches = Batches(documents, project, Sessions(documents, project, set()))

    def expire(self, before: datetime, is_over: Callable[[], bool] = lambda: False) -> int:
        """Erase what came before a time, but for batches that tasks learn from which have not
        ended; return how many sessions that were. What is not done when it is over is left to the
        next call."""
        self._batches.place_all()
        held = self._batches.needed()
        batches = [one for one in self._batches.begun_before(before) if one not in held]
        latest = first_id_at(before)
        return sum(self.erase({"batch": one}, latest, is_over).sessions for one in batches)

    def erase(
        self,
        which: Filter,
        before_id: str | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> Erased:
        """Erase the sessions that meet a filter with their events, but for those in batches that
        tasks learn from which have not ended. Calls that were interrupted are completed by the
        next.

        before_id: only those whose ids are smaller. Other sessions keep their numbers; those of
        erased ones stay empty."""
        erased = kept = 0
        held_by: set[str] = set()
        after = ""
        while True:
            project = self._completed()
            self._batches.place_all()
            held = self._batches.needed()
            where: Filter = {**which, "project": self._project, "id": above(after)}
            page = self._documents.find(
                SESSIONS, where, sort=("id",), limit=AT_ONCE, fields=_FIELDS
            )
            page = [one for one in page if before_id is None or one["id"] < before_id]
            if not page or is_over():
                return Erased(erased, kept, tuple(sorted(held_by)))
            if any("batch" not in one for one in page):
                continue  # it came just now
            going = [one for one in page if one["batch"] not in held]
            if going and not self._begin(going, project):
                continue  # another erasure was quicker
            staying = [one["batch"] for one in page if one["batch"] in held]
            erased, kept = erased + len(going), kept + len(staying)
            held_by.update(*(held[batch] for batch in staying))
            after = page[-1]["id"]

    def _begin(self, going: list[Document], project: Document) -> bool:
        """Begin to erase sessions; False where another step began since the project was seen."""
        self._batches.expect_gaps({one["batch"] for one in going})
        freed = usage_of(going)
        as_seen: Filter = {"id": self._project, "erasures": project.get("erasures")}
        begun = self._documents.change(
            PROJECTS,
            as_seen,
            set={"erasing": [one["id"] for one in going]},
            add={"erasures": 1, "sessions": -freed.sessions, "bytes": -freed.bytes},
        )
        return begun is not None

    def _completed(self) -> Document:
        """Complete the step that has begun, if one has; return the project's document."""
        while True:
            project = self._documents.find_one(PROJECTS, {"id": self._project}) or {}
            if "erasing" not in project:
                return project
            which: Filter = {"id": among(project["erasing"])}
            going = self._documents.find(SESSIONS, which, fields=("session_id",))
            names = among(one["session_id"] for one in going)
            self._documents.delete(EARLY, {"project": self._project, "session_id": names})
            self._documents.delete(SESSIONS, which)
            as_seen: Filter = {"id": self._project, "erasures": project["erasures"]}
            self._documents.change(PROJECTS, as_seen, set={"erasing": None})
