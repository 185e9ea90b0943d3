"""The contract of every store: API keys."""

from datetime import timedelta

import pytest

from embedding_studio.access import ApiKey, Scope, make_key
from embedding_studio.errors import NotFound
from embedding_studio.store import Store
from tests.contracts.store_processes import NOW

LATER = NOW + timedelta(days=1)
LATEST = NOW + timedelta(days=2)


def add_key(store: Store, name: str = "shop", **more: object) -> ApiKey:
    key, _ = make_key(name, [Scope.INGEST, Scope.READ], "acme", NOW, **more)  # type: ignore[arg-type]
    store.add_key(key)
    return key


def test_a_key_comes_back_as_it_was_added(store: Store) -> None:
    """Every field is read back equal, whichever project the store sees; unknown ids give None."""
    key = add_key(store, expires_at=LATER)
    assert store.find_key(key.id) == store.in_project("other").find_key(key.id) == key
    assert store.find_key("0" * 12) is None


def test_keys_are_listed_oldest_first(store: Store) -> None:
    """All keys are listed, ended ones too; adding one again changes nothing."""
    assert store.list_keys() == []
    first, second = add_key(store, "one"), add_key(store, "two")
    store.add_key(first)
    ended = store.end_key(first.id, revoked_at=NOW)
    assert {key.id: key for key in store.list_keys()} == {first.id: ended, second.id: second}


def test_the_first_revocation_stays(store: Store) -> None:
    """Revoking sets the time once; revoking again keeps it."""
    key = add_key(store)
    assert store.end_key(key.id, revoked_at=LATER).revoked_at == LATER
    assert store.end_key(key.id, revoked_at=LATEST).revoked_at == LATER
    assert store.find_key(key.id) == store.end_key(key.id)


def test_an_expiry_only_comes_nearer(store: Store) -> None:
    """An earlier expiry replaces a later one or none; a later one is ignored."""
    key = add_key(store)
    assert store.end_key(key.id, expires_at=LATER).expires_at == LATER
    assert store.end_key(key.id, expires_at=LATEST).expires_at == LATER
    assert store.end_key(key.id, expires_at=NOW).expires_at == NOW
    other = add_key(store, "other")
    assert other.expires_at is None
    assert store.find_key(other.id) == other


def test_ending_an_unknown_key_is_not_found(store: Store) -> None:
    """The error names the id."""
    with pytest.raises(NotFound, match="nobody"):
        store.end_key("nobody", revoked_at=NOW)
