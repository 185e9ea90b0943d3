"""API keys: how they are made, what is kept of them, and what each allows.

A key is `es_<id>_<secret>`. Only a SHA-256 of the secret is kept: of 256 random bits, there is
nothing to guess that a slow hash would protect."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from embedding_studio.clock import DURATION, parse_duration
from embedding_studio.errors import InvalidInput
from embedding_studio.plain import check_plain
from embedding_studio.projects import check_project

MAX_NAME_LENGTH = 256

SIGN_IN_LASTS = timedelta(hours=12)

_KEY = re.compile(r"es_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SIGN_IN = re.compile(r"([0-9a-f]{12})\.([0-9]{1,12})\.([A-Za-z0-9_-]{22})\.([0-9a-f]{64})")


class Scope(StrEnum):
    """What a key may be used for; admin is all of it."""

    INGEST = "ingest"
    TUNE = "tune"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key. It ends when it expires or is revoked, whichever is first; UTC."""

    id: str
    name: str
    project: str
    scopes: tuple[Scope, ...]
    secret_sha256: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


class PresentedKey(NamedTuple):
    """A key as a client sends it, taken apart."""

    id: str
    secret: str

    def is_of(self, kept: ApiKey | None, now: datetime) -> bool:
        """Return whether the secret is the kept key's. An unknown key, None, takes as long to
        refuse as a wrong secret: nobody learns from the time which ids there are."""
        expected = _NOBODYS if kept is None else kept.secret_sha256
        return hmac.compare_digest(_hash(self.secret), expected) and kept is not None


class SignIn(NamedTuple):
    """What a browser shows in place of a key, for a while, once its user has shown the key."""

    #: of the key
    id: str
    #: Unix seconds
    ends_at: int
    nonce: str
    signature: str

    def is_of(self, kept: ApiKey | None, now: datetime) -> bool:
        """Return whether it was made of the kept key and lasts. An unknown key, None, is refused as
        a key is."""
        expected = _NOBODYS if kept is None else kept.secret_sha256
        signature = _sign(expected, self.id, self.ends_at, self.nonce)
        is_right = hmac.compare_digest(self.signature, signature) and kept is not None
        return is_right and now.timestamp() < self.ends_at


def make_key(
    name: str,
    scopes: Iterable[Scope],
    project: str,
    now: datetime,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Return a new key as it is kept, and as its owner is told it, once.

    Raises InvalidInput for a key that could never be used."""
    kept = tuple(scope for scope in Scope if scope in set(scopes))
    if not kept:
        raise InvalidInput("a key without a scope allows nothing: name one of " + ", ".join(Scope))
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise InvalidInput(f"a key's name has 1 to {MAX_NAME_LENGTH} characters, not {len(name)}")
    try:
        check_plain(name)
    except ValueError as error:
        raise InvalidInput(f"the key's name {name!r} {error}") from error
    if expires_at is not None and expires_at <= now:
        raise InvalidInput(f"the key would have expired already, at {expires_at.isoformat()}")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    key = ApiKey(key_id, name, check_project(project), kept, _hash(secret), now, expires_at)
    return key, f"es_{key_id}_{secret}"


def make_successor(key: ApiKey, now: datetime) -> tuple[ApiKey, str]:
    """Return a new key for the same use, which lives as long as the former one was to.

    Raises InvalidInput for a key that has ended: it has nothing to hand over."""
    if not key.is_valid(now):
        raise InvalidInput(f"key {key.id} has ended already: make a new one")
    expires_at = key.expires_at and now + (key.expires_at - key.created_at)
    return make_key(key.name, key.scopes, key.project, now, expires_at)


def read_key(text: str) -> PresentedKey | None:
    """Return the parts of a key, None for a text that is none."""
    found = _KEY.fullmatch(text)
    return PresentedKey(*found.groups()) if found else None


def make_sign_in(key: ApiKey, now: datetime) -> str:
    """Return what a browser may show in place of this key, for SIGN_IN_LASTS. The key cannot be
    told from it."""
    ends_at, nonce = int((now + SIGN_IN_LASTS).timestamp()), secrets.token_urlsafe(16)
    return f"{key.id}.{ends_at}.{nonce}.{_sign(key.secret_sha256, key.id, ends_at, nonce)}"


def read_sign_in(text: str) -> SignIn | None:
    """Return the parts of what `make_sign_in` made, None for another text."""
    found = _SIGN_IN.fullmatch(text)
    if found is None:
        return None
    key_id, ends_at, nonce, signature = found.groups()
    return SignIn(key_id, int(ends_at), nonce, signature)


def parse_expiry(text: str, now: datetime) -> datetime:
    """Return when "90d" from now is, or the ISO date or time; without an offset it is UTC.

    Raises InvalidInput."""
    if DURATION.fullmatch(text):
        return now + parse_duration(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            f"{text!r} says no time: write a duration (90d, 24h) or a date (2027-01-31)"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _sign(secret_sha256: str, key_id: str, ends_at: int, nonce: str) -> str:
    told = f"sign-in {key_id} {ends_at} {nonce}".encode()
    return hmac.new(bytes.fromhex(secret_sha256), told, hashlib.sha256).hexdigest()


_NOBODYS = _hash(secrets.token_urlsafe(32))
