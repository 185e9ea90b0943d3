"""Who is asking: every request passes here first, before its body is read."""

import asyncio
import math
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from ipaddress import IPv6Address, IPv6Network
from urllib.parse import urlsplit

import limits
from fastapi import HTTPException
from fastapi.datastructures import Headers
from fastapi.responses import JSONResponse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as ASGIScope

from embedding_studio.api.connections import STREAMED_PATH
from embedding_studio.api.errors import answer
from embedding_studio.api.keys import NOBODY, Caller, KeyRing, key_in
from embedding_studio.errors import (
    ConfigurationError,
    StoreUnavailable,
    TooManyRequests,
    Unauthorized,
)
from embedding_studio.keys import PresentedKey, SignIn
from embedding_studio.settings import Settings, is_loopback

HEALTH_KEY_SECONDS = 1.0
HEALTH_PATH = "/api/v1/health"
OPEN_PATHS = frozenset(
    {"/api/v1/ping", HEALTH_PATH, "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)
"""What anyone may ask; ping, health and the manual tell nothing of any project."""
CALLERS = 10
"""How many of them it takes at least to have all connections at work."""
TURNS = 10
"""How many calls of one caller have a thread at a time, of forty that there are."""
BODIES_AT_ONCE = 4
_OF_ANOTHER = (
    "there are no API keys, so only this machine is answered, and only by its own names: "
    "localhost, 127.0.0.1 or [::1], not {!r}. Ask by one of these; or make a key with "
    "`embedding-studio keys create`, or name the host in ES_API_PUBLIC_URL, or, behind a proxy "
    "that knows who may call, set ES_ALLOW_OPEN=true"
)
FREE_BYTES = 64 * 1024
"""What a body may have however many others of its sender are under way."""


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


@dataclass(slots=True)
class _Share:
    """What one caller has under way."""

    requests: int = 0
    bytes: int = 0
    #: of calls that have a thread; the others wait
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TURNS))


class Gate:
    """ASGI middleware: lets a request in, telling in its `state` who the `caller` is and whether
    he is `still_allowed`, or refuses it before its body is read."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        rate_limit: RateLimit,
        settings: Settings,
        open_paths: Collection[str] = OPEN_PATHS,
        proof_in: Callable[[ASGIScope], PresentedKey | SignIn | None] = key_in,
    ) -> None:
        """Take what tells by which proof a request is judged, and which need none."""
        self._app = app
        self._keys = keys
        self._open_paths = open_paths
        self._proof_in = proof_in
        self._rate_limit = rate_limit
        self._takes_any_host = settings.allow_open
        self._public_host = _host_in(urlsplit(settings.api_public_url or "").netloc)
        self._shares: dict[str, _Share] = {}
        self._most_at_once = max(1, settings.max_connections // CALLERS)
        self._too_many = (
            f"more than {self._most_at_once} requests of yours are under way, the most that are "
            f"taken with ES_MAX_CONNECTIONS at {settings.max_connections}: wait for their answers"
        )
        self._max_bytes = settings.max_body_mb * 1024 * 1024
        self._too_large = (
            f"the body is larger than {settings.max_body_mb} MB, the most that is taken "
            "(ES_MAX_BODY_MB): send less in one request"
        )
        self._too_many_bytes = (
            f"the bodies of your requests under way are larger than {BODIES_AT_ONCE} of the "
            f"{settings.max_body_mb} MB that one may have (ES_MAX_BODY_MB): wait for their answers"
        )

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        who, refusal = f"address {_address_of(scope)}", None
        proof = self._proof_in(scope)
        try:
            caller = await self._caller_of(scope["path"], proof)
            if caller.key and scope["path"] not in self._open_paths:
                who = f"key {caller.key.id}"
        except Unauthorized as error:
            # by themselves: they are not to hold up others at the address, a proxy's perhaps
            who, refusal = f"{who} without a valid key", error
        except StoreUnavailable as error:
            await answer(error)(scope, receive, send)
            return
        try:
            self._rate_limit.count(who)
        except TooManyRequests as error:
            seconds = self._rate_limit.seconds_until_free(who)
            await answer(error, {"Retry-After": str(seconds)})(scope, receive, send)
            return
        if refusal is not None:
            await answer(refusal)(scope, receive, send)
            return
        host = _host_in(headers.get("host", ""))
        if caller.is_trusted and not self._is_ours(host):
            status = HTTPStatus.MISDIRECTED_REQUEST
            await JSONResponse({"detail": _OF_ANOTHER.format(host)}, status)(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["caller"] = caller
        state["still_allowed"] = partial(self._keys.still_lets_in, proof)
        await self._pass_on(scope, receive, send, headers, who)

    def _is_ours(self, host: str) -> bool:
        """Return whether what is open to this machine may be asked by this name. A page elsewhere
        whose name was made to lead here (DNS rebinding) asks by its own."""
        return self._takes_any_host or is_loopback(host) or host == self._public_host != ""

    async def _caller_of(self, path: str, proof: PresentedKey | SignIn | None) -> Caller:
        if path not in self._open_paths:
            return await self._keys.caller_of(proof)
        with suppress(Unauthorized, StoreUnavailable, TimeoutError):
            if path == HEALTH_PATH:  # it tells more to some
                return await asyncio.wait_for(self._keys.caller_of(proof), HEALTH_KEY_SECONDS)
        return NOBODY

    async def _pass_on(
        self, scope: ASGIScope, receive: Receive, send: Send, headers: Headers, who: str
    ) -> None:
        # fastapi's own limit, max_body_size, answers in plain text, which cannot be worded
        declared = headers.get("content-length", "")
        is_streamed = scope["path"] == STREAMED_PATH  # nothing of it is kept
        if not is_streamed and declared.isdecimal() and int(declared) > self._max_bytes:
            await JSONResponse({"detail": self._too_large}, 413)(scope, receive, send)
            return
        taken = 0

        async def receive_within_limit() -> Message:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            taken += size
            share.bytes += size
            if taken > self._max_bytes:
                raise HTTPException(413, self._too_large)
            if taken > FREE_BYTES and share.bytes > BODIES_AT_ONCE * self._max_bytes:
                raise HTTPException(429, self._too_many_bytes, {"Retry-After": "1"})
            return message

        share = self._shares.setdefault(who, _Share())
        scope["state"]["turns"] = share.turns
        share.requests += 1
        try:
            if share.requests > self._most_at_once:
                busy = JSONResponse({"detail": self._too_many}, 429, {"Retry-After": "1"})
                await busy(scope, receive, send)
            else:
                await self._app(scope, receive if is_streamed else receive_within_limit, send)
        finally:
            share.requests -= 1
            share.bytes -= taken
            if not share.requests:
                del self._shares[who]


def _host_in(place: str) -> str:
    """Return the host of `host:port`, "" where there is none."""
    with suppress(ValueError):
        return urlsplit(f"//{place}").hostname or ""
    return ""


def _address_of(scope: ASGIScope) -> str:
    """Return where a request comes from; of IPv6 the network, of which a caller has all."""
    client = scope.get("client")
    if not client:
        return "unknown"
    host: str = client[0]
    if ":" not in host:
        return host
    with suppress(ValueError):
        address = IPv6Address(host)
        return str(address.ipv4_mapped or IPv6Network((int(address), 64), strict=False))
    return host
