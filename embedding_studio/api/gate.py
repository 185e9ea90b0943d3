"""Who is asking: every request passes here first, before its body is read."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import limits
from fastapi import HTTPException
from fastapi.concurrency import run_in_threadpool
from fastapi.datastructures import Headers
from fastapi.responses import JSONResponse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as ASGIScope

from embedding_studio import access
from embedding_studio.access import ApiKey, Scope
from embedding_studio.api.errors import answer
from embedding_studio.errors import (
    ConfigurationError,
    Forbidden,
    StoreUnavailable,
    TooManyRequests,
    Unauthorized,
)
from embedding_studio.projects import DEFAULT_PROJECT
from embedding_studio.settings import Settings
from embedding_studio.store.base import Store

KEY_CACHE = timedelta(seconds=5)
"""How long a key may still be taken after it was revoked."""
MAX_CACHED_KEYS = 1024
OPEN_PATHS = frozenset(
    {"/api/v1/ping", "/api/v1/health", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)
"""What anyone may ask; ping, health and the manual tell nothing of any project."""

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request. key: None for anyone, who may do everything or, where it takes a key
    to do anything, nothing."""

    key: ApiKey | None = None
    is_trusted: bool = False

    @property
    def project(self) -> str:
        return self.key.project if self.key else DEFAULT_PROJECT

    def allows(self, scope: Scope) -> bool:
        return self.is_trusted if self.key is None else self.key.allows(scope)

    def require(self, scope: Scope) -> None:
        """Raise Forbidden without the scope."""
        if not self.allows(scope):
            raise Forbidden(
                f"this takes a key with the scope {scope}; yours has "
                f"{', '.join(self.key.scopes) if self.key else 'none'}"
            )


NOBODY = Caller()


class KeyRing:
    """The keys in the store, as they were at most KEY_CACHE ago."""

    def __init__(self, store: Store, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._may_be_open = settings.is_loopback or settings.allow_open
        self._has_keys = False  # once there was one, never again without
        self._looked_at: datetime | None = None
        self._found: dict[str, tuple[ApiKey | None, datetime]] = {}

    async def caller_of(self, headers: Headers) -> Caller:
        """Return who sent these headers. Raises Unauthorized without a valid key, unless there are
        no keys yet and the API may be open; StoreUnavailable."""
        if self._may_be_open and await self._is_open():
            return Caller(is_trusted=True)
        presented = _presented(headers)
        if presented is not None:
            key = await self._find(presented.id)
            # an unknown key, a wrong secret and an ended key are told by nothing, time included
            if access.matches(presented, key) and key and key.is_valid(self._clock()):
                return Caller(key)
        raise Unauthorized(
            "this takes a valid API key: send `Authorization: Bearer es_...`; "
            "`embedding-studio keys create` makes keys"
        )

    async def still_lets_in(self, headers: Headers) -> bool:
        """Return whether a request that is being answered would be let in again."""
        try:
            await self.caller_of(headers)
        except Unauthorized:
            return False
        except StoreUnavailable:
            return True  # nothing is known against it
        return True

    async def _is_open(self) -> bool:
        now = self._clock()
        if not self._has_keys and not _is_fresh(self._looked_at, now):
            self._has_keys = bool(await run_in_threadpool(self._store.list_keys))
            self._looked_at = now
        return not self._has_keys

    async def _find(self, key_id: str) -> ApiKey | None:
        now = self._clock()
        key, looked_at = self._found.get(key_id, (None, None))
        if not _is_fresh(looked_at, now):
            key = await run_in_threadpool(self._store.find_key, key_id)
            while len(self._found) >= MAX_CACHED_KEYS:
                self._found.pop(next(iter(self._found)))
            self._found[key_id] = key, now
        return key


class RateLimit:
    """How often each caller may ask, counted in this process."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        try:
            self._limit = limits.parse(wanted) if wanted else None
        except ValueError:
            raise ConfigurationError(
                f"ES_RATE_LIMIT is {wanted!r}: write 600/minute, say, or nothing for no limit"
            ) from None
        self._counts = SlidingWindowCounterRateLimiter(MemoryStorage())

    def count(self, who: str) -> None:
        """Count one request. Raises TooManyRequests above the limit."""
        if self._limit is not None and not self._counts.hit(self._limit, who):
            raise TooManyRequests(
                f"more than {self._wanted} requests came from {who}, the most that are taken "
                "(ES_RATE_LIMIT): slow down, or send many sessions in one request"
            )

    def seconds_until_free(self, who: str) -> int:
        """Return after how many seconds another request may be taken, at least 1."""
        if self._limit is None:
            return 1
        reset_at = self._counts.get_window_stats(self._limit, who).reset_time
        return max(1, math.ceil(reset_at - time.time()))


class Gate:
    """ASGI middleware: lets a request in, telling in its `state` who the `caller` is and whether
    he is `still_allowed`, or refuses it before its body is read."""

    def __init__(
        self, app: ASGIApp, keys: KeyRing, rate_limit: RateLimit, max_body_mb: int
    ) -> None:
        self._app = app
        self._keys = keys
        self._rate_limit = rate_limit
        self._max_bytes = max_body_mb * 1024 * 1024
        self._too_large = (
            f"the body is larger than {max_body_mb} MB, the most that is taken (ES_MAX_BODY_MB): "
            "send less in one request"
        )

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        who = ""
        try:
            caller = await self._caller_of(scope["path"], headers)
            if scope["path"] not in OPEN_PATHS:
                who = f"key {caller.key.id}" if caller.key else f"address {_address_of(scope)}"
                self._rate_limit.count(who)
        except TooManyRequests as error:
            seconds = self._rate_limit.seconds_until_free(who)
            await answer(error, {"Retry-After": str(seconds)})(scope, receive, send)
        except (Unauthorized, StoreUnavailable) as error:
            await answer(error)(scope, receive, send)
        else:
            state = scope.setdefault("state", {})
            state["caller"] = caller
            state["still_allowed"] = partial(self._keys.still_lets_in, headers)
            await self._pass_on(scope, receive, send, headers)

    async def _caller_of(self, path: str, headers: Headers) -> Caller:
        try:
            return await self._keys.caller_of(headers)
        except (Unauthorized, StoreUnavailable):
            if path in OPEN_PATHS:
                return NOBODY
            raise

    async def _pass_on(
        self, scope: ASGIScope, receive: Receive, send: Send, headers: Headers
    ) -> None:
        # fastapi's own limit, max_body_size, answers in plain text, which cannot be worded
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await JSONResponse({"detail": self._too_large}, 413)(scope, receive, send)
            return
        taken = 0

        async def receive_within_limit() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                raise HTTPException(413, self._too_large)
            return message

        await self._app(scope, receive_within_limit, send)


def _presented(headers: Headers) -> access.PresentedKey | None:
    kind, _, credentials = headers.get("authorization", "").partition(" ")
    text = credentials.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
    return access.read_key(text)


def _is_fresh(looked_at: datetime | None, now: datetime) -> bool:
    # a clock that was set back must not keep a key alive
    return looked_at is not None and timedelta(0) <= now - looked_at < KEY_CACHE


def _address_of(scope: ASGIScope) -> str:
    client = scope.get("client")
    return client[0] if client else "unknown"
