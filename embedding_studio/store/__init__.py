"""Where tasks and clickstream live: one interface, one implementation per database."""

from embedding_studio.errors import ConfigurationError
from embedding_studio.store.base import Store

__all__ = ["Store", "open_store"]


def open_store(url: str) -> Store:
    """Open the store that `url` names, creating tables or indexes where they are missing.

    Only the driver of the named database is imported. Raises ConfigurationError for a URL of
    another kind and StoreUnavailable when the database does not answer.
    """
    if url.startswith("sqlite://"):
        from embedding_studio.store.sqlite import SqliteStore

        return SqliteStore(url)
    if url.startswith(("mongodb://", "mongodb+srv://")):
        from embedding_studio.store.mongo import MongoStore

        return MongoStore(url)
    scheme = url.split(":", 1)[0]
    raise ConfigurationError(
        f"ES_STORE_URL has the unknown scheme {scheme!r}: use mongodb://host/database or "
        "sqlite:///path/to/store.db"
    )
