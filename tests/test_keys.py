"""API keys: what is made, kept and checked."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from embedding_studio.clock import parse_duration
from embedding_studio.errors import InvalidInput
from embedding_studio.keys import (
    SIGN_IN_LASTS,
    ApiKey,
    Scope,
    make_key,
    make_sign_in,
    make_successor,
    parse_expiry,
    read_key,
    read_sign_in,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def test_a_key_is_told_once_and_not_kept() -> None:
    """What is kept matches the text and holds no part of the secret; no two keys are alike."""
    key, text = make_key("shop", [Scope.READ, Scope.INGEST], "acme", NOW, NOW + DAY)
    presented = read_key(text)
    assert presented is not None
    assert text == f"es_{key.id}_{presented.secret}"
    assert len(presented.secret) == 43  # 256 bits in base64
    assert presented.secret not in repr(key)
    assert key.scopes == (Scope.INGEST, Scope.READ)
    assert presented.is_of(key, NOW)
    other, other_text = make_key("shop", [Scope.READ], "acme", NOW)
    assert (other.id, other.secret_sha256) != (key.id, key.secret_sha256)
    assert not presented.is_of(other, NOW)
    assert not presented.is_of(None, NOW)
    assert read_key(other_text) != presented


def test_a_sign_in_tells_no_key_and_ends() -> None:
    """It is of its key alone, for half a day, and holds neither the secret nor what is kept."""
    key, text = make_key("k", [Scope.READ], "default", NOW)
    sign_in = read_sign_in(written := make_sign_in(key, NOW))
    assert sign_in is not None
    assert key.secret_sha256 not in written
    assert text.rpartition("_")[2] not in written
    assert make_sign_in(key, NOW) != written
    last = NOW + SIGN_IN_LASTS - timedelta(seconds=1)
    assert sign_in.is_of(key, last)
    assert not sign_in.is_of(key, NOW + SIGN_IN_LASTS)
    assert not sign_in.is_of(None, NOW)
    other, _ = make_key("k", [Scope.READ], "default", NOW)
    assert not sign_in.is_of(other, NOW)
    assert not sign_in._replace(ends_at=sign_in.ends_at + 1).is_of(key, NOW)
    assert read_sign_in(text) is None


@pytest.mark.parametrize(
    "text", ["", "es_", "es_1_2", "Bearer x", f"es_{'g' * 12}_{'a' * 43}", f"es_{'0' * 12}_é" * 9]
)
def test_what_is_no_key_is_not_read(text: str) -> None:
    """A text of another form has no parts, so nothing is looked up for it."""
    assert read_key(text) is None


def test_secrets_with_any_letter_are_read() -> None:
    """Underscores and dashes, which base64 brings, do not confuse the parts."""
    presented = read_key(f"es_{'0' * 12}_{'_-' * 21}_")
    assert presented == ("0" * 12, "_-" * 21 + "_")


def test_a_key_ends_when_it_expires_or_is_revoked() -> None:
    """It is valid up to, and not at, its expiry, and never once it is revoked."""
    key, _ = make_key("k", [Scope.READ], "default", NOW, NOW + DAY)
    assert key.is_valid(NOW)
    assert key.is_valid(NOW + DAY - timedelta(microseconds=1))
    assert not key.is_valid(NOW + DAY)
    revoked = ApiKey("1", "k", "default", (Scope.READ,), "", NOW, revoked_at=NOW + DAY)
    assert not revoked.is_valid(NOW)


@pytest.mark.parametrize("scope", Scope)
def test_admin_allows_everything(scope: Scope) -> None:
    """A scope allows itself; admin allows each, and no other scope allows admin."""
    admin, _ = make_key("k", [Scope.ADMIN], "default", NOW)
    assert admin.allows(scope)
    key, _ = make_key("k", [scope], "default", NOW)
    assert [one for one in Scope if key.allows(one)] == (
        list(Scope) if scope is Scope.ADMIN else [scope]
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_key("k", [], "default", NOW), "without a scope"),
        (lambda: make_key("", [Scope.READ], "default", NOW), "name"),
        (lambda: make_key("k" * 257, [Scope.READ], "default", NOW), "257"),
        (lambda: make_key("k", [Scope.READ], "No Project", NOW), "No Project"),
        (lambda: make_key("k", [Scope.READ], "default", NOW, NOW), "expired already"),
        (lambda: parse_duration("soon"), "90d"),
        (lambda: parse_duration("-1d"), "90d"),
        (lambda: parse_expiry("tomorrow", NOW), "2027-01-31"),
    ],
)
def test_a_key_of_no_use_is_refused(make: Callable[[], object], words: str) -> None:
    """Each refusal says what is wrong."""
    with pytest.raises(InvalidInput, match=words):
        make()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90d", NOW + 90 * DAY),
        ("24h", NOW + DAY),
        ("30m", NOW + timedelta(minutes=30)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01T01:00:00+01:00", datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_expiries_are_durations_or_dates(text: str, expected: datetime) -> None:
    """A duration counts from now; a date without an offset is UTC."""
    assert parse_expiry(text, NOW) == expected


def test_a_successor_lives_as_long() -> None:
    """It has the use and the length of life of the former key, and another id; an ended key has
    none."""
    key, _ = make_key("k", [Scope.TUNE], "acme", NOW, NOW + 90 * DAY)
    later = NOW + 80 * DAY
    successor, _ = make_successor(key, later)
    assert (successor.name, successor.scopes, successor.project) == ("k", (Scope.TUNE,), "acme")
    assert successor.expires_at == later + 90 * DAY
    assert successor.id != key.id
    with pytest.raises(InvalidInput, match="ended"):
        make_successor(key, NOW + 90 * DAY)
