"""The contract of every store: what was answered was kept, and a ping tells when nothing is."""

from dataclasses import replace
from typing import Any

import pytest

from embedding_studio.errors import StoreUnavailable
from embedding_studio.store import Store
from tests.contracts.store_backends import Backend
from tests.contracts.store_processes import NOW, make_session


def post(store: Store, session_id: str, **changes: Any) -> None:
    store.clickstream.register([replace(make_session(session_id), **changes)], NOW)


def test_a_ping_tells_whether_writes_are_taken(backend: Backend, store: Store) -> None:
    """ping returns where a write would go well, and raises what each of them does; once one goes
    well, it is over."""
    store.ping()
    with backend.refusing():
        with pytest.raises(StoreUnavailable, match=r"full|no space"):
            post(store, "s-1")
        with pytest.raises(StoreUnavailable, match=r"full|no space"):
            store.in_project("another").ping()
        assert store.clickstream.collecting_batch() is None  # reading goes on
    post(store, "s-1")
    store.ping()
