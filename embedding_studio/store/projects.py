"""What each project holds, and whether there is room for more.

Room is reserved before it is filled, in one atomic step that also looks at the limit. A process
that dies between the two leaves a little reserved; it is free again once the project is counted
anew.
"""

from embedding_studio.clickstream import Usage
from embedding_studio.store.documents import Document, Documents, Filter, Kind, up_to
from embedding_studio.store.usage import ensure_within

PROJECTS = Kind("projects")
"""A document's id is the project. It counts `sessions` and `bytes`, and of the bytes those of
items, labels and tasks as `other_bytes`: they stay when the sessions are counted anew."""


class Projects:
    """The counters of all projects."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def usage(self) -> dict[str, Usage]:
        """Return what each project holds."""
        return {found["id"]: usage_of(found) for found in self._documents.find(PROJECTS, {})}

    def reserve(
        self, project: str, added: Usage, most: Usage | None = None, *, other_bytes: int = 0
    ) -> Document:
        """Count what is about to be added, and return the project's document.

        other_bytes: how many of the bytes are no session's. Raises TooManyRequests, and counts
        nothing, where the project would hold more than `most`.
        """
        room: dict[str, int] = {}
        if most is not None and added.sessions:
            room["sessions"] = most.sessions - added.sessions
        if most is not None and added.bytes:
            room["bytes"] = most.bytes - added.bytes
        where: Filter = {"id": project, **{name: up_to(left) for name, left in room.items()}}
        add = {"sessions": added.sessions, "bytes": added.bytes, "other_bytes": other_bytes}
        while True:
            if (changed := self._documents.change(PROJECTS, where, add=add)) is not None:
                return changed.document
            there = self._documents.find_one(PROJECTS, {"id": project})
            if there is None:
                self._documents.insert_one(PROJECTS, {"id": project, "sessions": 0, "bytes": 0})
            else:
                ensure_within(project, usage_of(there), added, most)

    def check(self, project: str, added: Usage, most: Usage | None) -> None:
        """Raise TooManyRequests where `reserve` would; nothing is counted."""
        there = self._documents.find_one(PROJECTS, {"id": project})
        ensure_within(project, usage_of(there) if there else Usage(), added, most)

    def give_back(self, project: str, unused: Usage, *, other_bytes: int = 0) -> None:
        """Free what was reserved and is not needed."""
        add = {"sessions": -unused.sessions, "bytes": -unused.bytes, "other_bytes": -other_bytes}
        self._documents.change(PROJECTS, {"id": project}, add=add)

    def give_back_bytes(self, project: str, size: int) -> None:
        """Free what was reserved for what is no session."""
        if size:
            self.give_back(project, Usage(0, size), other_bytes=size)


def usage_of(document: Document) -> Usage:
    """Return what a project holds, by its document."""
    return Usage(document["sessions"], document["bytes"])
