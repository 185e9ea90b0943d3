"""What is kept: a noun a module, over documents in one of three databases."""

from pathlib import Path
from urllib.parse import urlsplit

from embedding_studio.errors import ConfigurationError
from embedding_studio.store.documents import Documents
from embedding_studio.store.store import Store

__all__ = ["Store", "is_there", "open_documents", "open_store", "place_of"]

_FILE = "sqlite:///"


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


def place_of(url: str) -> str:
    """Return where the store is that `url` names, for people: a file, or a server's address without
    the password."""
    if url.startswith(_FILE):
        return str(Path(url.removeprefix(_FILE)).absolute())
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_there(url: str) -> bool:
    """Return whether opening the store would find one, not make one: a file may be missing; a
    server makes its databases by itself."""
    return not url.startswith(_FILE) or Path(url.removeprefix(_FILE)).is_file()
