"""API keys as they are kept; those of all projects."""

from datetime import datetime

from embedding_studio.errors import unknown
from embedding_studio.keys import ApiKey
from embedding_studio.store.codec import Codec, milliseconds
from embedding_studio.store.documents import Documents, Filter, Kind, above, absent

KEYS = Kind("keys", indexes=(("created_at", "id"),))
KEY = Codec(ApiKey)


class Keys:
    """The API keys of all projects."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def add(self, key: ApiKey) -> None:
        """Keep a new key; adding it again changes nothing."""
        self._documents.insert_one(KEYS, KEY.encode(key))

    def find(self, key_id: str) -> ApiKey | None:
        """Return the key of that id, None if there is none."""
        found = self._documents.find_one(KEYS, {"id": key_id})
        return None if found is None else KEY.decode(found)

    def all(self) -> list[ApiKey]:
        """Return all keys, those that have ended too, oldest first."""
        return [*map(KEY.decode, self._documents.find(KEYS, {}, sort=("created_at", "id")))]

    def end(
        self,
        key_id: str,
        *,
        expires_at: datetime | None = None,
        revoked_at: datetime | None = None,
    ) -> ApiKey:
        """Set when a key expires or was revoked, and return it. Raises NotFound.

        An end comes nearer, never further off: a later time than the one that is set is ignored."""
        for name, moment in (("expires_at", expires_at), ("revoked_at", revoked_at)):
            if moment is not None:
                end = milliseconds(moment)
                for is_later in (absent, above(end)):
                    which: Filter = {"id": key_id, name: is_later}
                    self._documents.change(KEYS, which, set={name: end})
        key = self.find(key_id)
        if key is None:
            raise unknown("API key", key_id)
        return key
