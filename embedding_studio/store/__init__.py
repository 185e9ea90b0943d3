"""What is kept: a noun a module, over documents in one of three databases."""

from embedding_studio.errors import ConfigurationError
from embedding_studio.store.documents import Documents
from embedding_studio.store.store import Store

__all__ = ["Store", "open_documents", "open_store"]


def open_store(url: str) -> Store:
    """Open the store that `url` names. Raises as `open_documents`."""
    return Store(open_documents(url))


def open_documents(url: str, *, is_migrating: bool = False) -> Documents:
    """Open the database that `url` names, creating tables or indexes where they are missing.

    Only the driver of the named database is imported. is_migrating: also one of version 0.1.
    Raises ConfigurationError for a URL of another kind and, unless it is migrating, for a database
    of version 0.1; StoreUnavailable when the database does not answer."""
    if url.startswith("sqlite://"):
        from embedding_studio.store.sqlite import SqliteDocuments

        return SqliteDocuments(url, is_migrating=is_migrating)
    if url.startswith(("mongodb://", "mongodb+srv://")):
        from embedding_studio.store.mongo import MongoDocuments

        return MongoDocuments(url, is_migrating=is_migrating)
    scheme = url.split(":", 1)[0]
    raise ConfigurationError(
        f"ES_STORE_URL has the unknown scheme {scheme!r}: use mongodb://host/database or "
        "sqlite:///path/to/store.db"
    )
