"""The contract of every store: API keys."""

from datetime import timedelta

import pytest

from embedding_studio.errors import NotFound
from embedding_studio.keys import ApiKey, Scope, make_key
from embedding_studio.store import Store
from tests.contracts.store_processes import NOW

LATER = NOW + timedelta(days=1)
LATEST = NOW + timedelta(days=2)


def add_key(store: Store, name: str = "shop", **more: object) -> ApiKey:
    key, _ = make_key(name, [Scope.INGEST, Scope.READ], "acme", NOW, **more)  # type: ignore[arg-type]
    store.keys.add(key)
    return key


def test_a_key_comes_back_as_it_was_added(store: Store) -> None:
    """Every field is read back equal, whichever project the store sees; unknown ids give None."""
    key = add_key(store, expires_at=LATER)
    assert store.keys.find(key.id) == store.in_project("other").keys.find(key.id) == key
    assert store.keys.find("0" * 12) is None


def test_keys_are_listed_oldest_first(store: Store) -> None:
    """All keys are listed, ended ones too; adding one again changes nothing."""
    assert store.keys.all() == []
    first, second = add_key(store, "one"), add_key(store, "two")
    store.keys.add(first)
    ended = store.keys.end(first.id, revoked_at=NOW)
    assert {key.id: key for key in store.keys.all()} == {first.id: ended, second.id: second}


def test_the_first_revocation_stays(store: Store) -> None:
    """Revoking sets the time once; revoking again keeps it."""
    key = add_key(store)
    assert store.keys.end(key.id, revoked_at=LATER).revoked_at == LATER
    assert store.keys.end(key.id, revoked_at=LATEST).revoked_at == LATER
    assert store.keys.find(key.id) == store.keys.end(key.id)


def test_an_expiry_only_comes_nearer(store: Store) -> None:
    """An earlier expiry replaces a later one or none; a later one is ignored."""
    key = add_key(store)
    assert store.keys.end(key.id, expires_at=LATER).expires_at == LATER
    assert store.keys.end(key.id, expires_at=LATEST).expires_at == LATER
    assert store.keys.end(key.id, expires_at=NOW).expires_at == NOW
    other = add_key(store, "other")
    assert other.expires_at is None
    assert store.keys.find(other.id) == other


def test_ending_an_unknown_key_is_not_found(store: Store) -> None:
    """The error names the id."""
    with pytest.raises(NotFound, match="nobody"):
        store.keys.end("nobody", revoked_at=NOW)
