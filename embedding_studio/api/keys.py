"""The keys that requests show, and what whoever shows one may do."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from fastapi.datastructures import Headers
from starlette.types import Scope as ASGIScope

from embedding_studio.api.looks import Look
from embedding_studio.clock import Clock
from embedding_studio.errors import Forbidden, StoreUnavailable, Unauthorized
from embedding_studio.keys import ApiKey, PresentedKey, Scope, SignIn, read_key
from embedding_studio.projects import DEFAULT_PROJECT
from embedding_studio.settings import Settings
from embedding_studio.store import Store

KEY_AGE = timedelta(seconds=5)
"""How long a key may still be taken after it was revoked."""
NEW_KEY_AGE = timedelta(seconds=1)
"""How long a key may still be refused after it was made."""
STORE_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request."""

    #: None for anyone
    key: ApiKey | None = None
    #: whether anyone may do everything; otherwise it takes a key to do anything
    is_trusted: bool = False

    @property
    def project(self) -> str:
        return self.key.project if self.key else DEFAULT_PROJECT

    def allows(self, scope: Scope) -> bool:
        return self.is_trusted if self.key is None else self.key.allows(scope)

    def require(self, scope: Scope, what: str = "this") -> None:
        """Raise Forbidden without the scope, which something takes."""
        if not self.allows(scope):
            raise Forbidden(
                f"{what} takes a key with the scope {scope}; yours has "
                f"{', '.join(self.key.scopes) if self.key else 'none'}"
            )


NOBODY = Caller()


class KeyRing:
    """All keys of the store, as they were at most KEY_AGE ago.

    All of them, so that what a caller shows decides nothing: who guesses makes the store work no
    more than who does not, and pushes no valid key out of memory."""

    def __init__(self, store: Store, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._may_be_open = settings.is_loopback or settings.allow_open
        self._had_keys = False  # once there was one, never again without
        self._look = Look(
            lambda: {key.id: key for key in store.keys.all()}, clock, STORE_ANSWER_SECONDS
        )

    async def caller_of(self, proof: PresentedKey | SignIn | None) -> Caller:
        """Return who showed this. Raises Unauthorized without a valid key, unless there are no keys
        yet and the API may be open; StoreUnavailable."""
        if self._may_be_open and await self._is_open():
            return Caller(is_trusted=True)
        if proof is not None:
            for age in (KEY_AGE, NEW_KEY_AGE):
                key, now = (await self._keys(age)).get(proof.id), self._clock()
                # an unknown key, a wrong secret and an ended key are told by nothing, time included
                if proof.is_of(key, now) and key and key.is_valid(now):
                    return Caller(key)
        raise Unauthorized(
            "this takes a valid API key: send `Authorization: Bearer es_...`; "
            "`embedding-studio keys create` makes keys"
        )

    async def still_lets_in(self, proof: PresentedKey | SignIn | None) -> bool:
        """Return whether a request that is being answered would be let in again."""
        try:
            await self.caller_of(proof)
        except Unauthorized:
            return False
        except StoreUnavailable:
            return True  # nothing is known against it
        return True

    async def _is_open(self) -> bool:
        if not self._had_keys:
            self._had_keys = bool(await self._keys(KEY_AGE))
        return not self._had_keys

    async def _keys(self, max_age: timedelta) -> Mapping[str, ApiKey]:
        try:
            return await self._look.latest(max_age)
        except TimeoutError:
            raise StoreUnavailable(
                f"the store did not answer for {STORE_ANSWER_SECONDS:g} seconds"
            ) from None


def key_in(scope: ASGIScope) -> PresentedKey | None:
    """Return the key that a request shows."""
    headers = Headers(scope=scope)
    kind, _, credentials = headers.get("authorization", "").partition(" ")
    text = credentials.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
    return read_key(text)
