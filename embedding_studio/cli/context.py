"""What commands reach: the API through its client, and the store where that cannot do it."""

from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.store import Store


def client_of(url: str | None) -> "EmbeddingStudioClient":
    """Return a client of the API at an address, by default of the one that the settings name."""
    from embedding_studio.services import client_of
    from embedding_studio.settings import Settings

    return client_of(Settings(), url)


def opened_store() -> "AbstractContextManager[Store]":
    """Return the store that the settings name, to be entered."""
    from embedding_studio.settings import Settings
    from embedding_studio.store import open_store

    return closing(open_store(Settings().resolved_store_url))
