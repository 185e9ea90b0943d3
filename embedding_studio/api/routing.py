"""The class of all routes: whose scope is missing is refused before a byte of his body is read."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import iscoroutinefunction
from json import loads
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic_core import from_json

from embedding_studio.api.context import Needs
from embedding_studio.settings import Settings
from embedding_studio.wire.quick import Parse

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Read = Callable[[Settings, Parse, bytes], Any]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Result = TypeVar("Result")

VALUES_PER_MB = 64 * 1024
"""Twice what sessions of short ids without texts come to: commas within texts are counted as well.
Empty lists come to ten times as many."""
SMALL_BYTES = 64 * 1024
"""What is parsed on the event loop."""

# one at a time: the parser keeps all other threads waiting, and takes many times the body's memory
_parser = ThreadPoolExecutor(1, "body")


def reading(read: Read) -> Callable[[Endpoint], Endpoint]:
    """Return the decorator of an endpoint whose bodies are read in a way of their own."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.read = read  # type: ignore[attr-defined]
        return endpoint

    return mark


async def in_turn(request: Request, work: Callable[..., Result], *given: Any) -> Result:
    """Return what work returns, in a thread, when it is its caller's turn to have one."""
    async with request.state.turns:
        return await run_in_threadpool(work, *given)


class Route(APIRoute):
    """A route of this API.

    FastAPI reads and parses a body before it solves dependencies, which is too late to refuse its
    sender.
    """

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        needs = [one.call for one in self.dependant.dependencies if isinstance(one.call, Needs)]
        takes_body = self.body_field is not None
        read: Read | None = getattr(self.endpoint, "read", None)
        is_async = iscoroutinefunction(self.endpoint)

        async def handle_allowed(request: Request) -> Response:
            for need in needs:
                request.state.caller.require(need.scope)
            request = _JsonRequest(request.scope, request.receive, read)
            if is_async:
                return await handle(request)
            if takes_body:
                await request.body()  # before its turn, so that no slow client keeps one
            async with request.state.turns:
                return await handle(request)

        return handle_allowed


class _JsonRequest(Request):
    """Reads a large body beside the event loop, and none that would take long."""

    def __init__(self, scope: Any, receive: Any, read: Read | None) -> None:
        super().__init__(scope, receive)
        self._read = read

    async def json(self) -> Any:
        body = await self.body()
        settings = self.app.state.settings
        read = parse if self._read is None else partial(self._read, settings, parse)
        if len(body) <= SMALL_BYTES:
            return read(body)
        _check_values(body, settings.max_body_mb)
        return await asyncio.get_running_loop().run_in_executor(_parser, read, body)


def parse(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:  # the standard library takes more, and says better what is wrong
        return loads(body)


def _check_values(body: bytes, max_body_mb: int) -> None:
    """Raise a 413 for a body of more values than a large body has. Its punctuation bounds them, and
    is counted far faster than values are made."""
    most = max_body_mb * VALUES_PER_MB
    if body.count(b",") + body.count(b"[") + body.count(b"{") > most:
        raise HTTPException(
            413,
            f"the body has more than {most} values, the most that are taken with ES_MAX_BODY_MB at "
            f"{max_body_mb}: send less in one request",
        )
