"""The people whose searches a project keeps, and how all that is kept of one is erased."""

from embedding_studio.store.documents import Documents
from embedding_studio.store.erasure import Erasure
from embedding_studio.users import Erased


class Users:
    """The people of one project."""

    def __init__(self, documents: Documents, project: str) -> None:
        self._erasure = Erasure(documents, project)

    def erase(self, user_id: str) -> Erased:
        """Erase the sessions of a user with their events, but for those in batches that tasks learn
        from which have not ended."""
        return self._erasure.erase({"user_id": user_id})
