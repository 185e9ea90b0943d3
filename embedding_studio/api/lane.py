"""The fast lane: posts of one small session with which nothing is wrong.

FastAPI takes longer to find the route, to solve its dependencies and to judge its answer than all
the rest of such a post takes. What is not plainly right goes on to the route, which says what is
wrong with it.
"""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_studio import keys
from embedding_studio.api.clickstream import register_one
from embedding_studio.api.context import Context
from embedding_studio.api.errors import answer
from embedding_studio.api.routing import SMALL_BYTES
from embedding_studio.wire.errors import STATUS_BY_ERROR
from embedding_studio.wire.quick import quick_session

PATH = "/api/v1/clickstream/session"
ERRORS = tuple(STATUS_BY_ERROR)


class Lane:
    """ASGI middleware behind the gate."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != PATH or not _may_be_quick(scope):
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        request = Request(scope)
        body = b"".join([message.get("body", b"") for message in messages])
        posted = quick_session(body, request.app.state.settings)
        if posted is None:
            await self._app(scope, _again(messages, receive), send)
            return
        try:
            outcome = await register_one(posted, request, Context.of(request))
            response = Response(outcome.model_dump_json(), media_type="application/json")
        except ERRORS as error:
            response = answer(error, is_admins=request.state.caller.allows(keys.Scope.ADMIN))
        await response(scope, receive, send)


def _may_be_quick(scope: Scope) -> bool:
    """Tell whether a small JSON is posted by one who may."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    return (
        scope["method"] == "POST"
        and headers.get(b"content-type") == b"application/json"
        and length.isdigit()
        and int(length) <= SMALL_BYTES
        and scope["state"]["caller"].allows(keys.Scope.INGEST)
    )


def _again(messages: Iterable[Message], receive: Receive) -> Receive:
    """Return what gives the messages that were received once more, and then those that come."""
    left = iter(messages)

    async def receive_again() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return receive_again
