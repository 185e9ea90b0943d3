"""How the page answers: its templates, the headers that every answer has, and errors as pages."""

import json
import secrets
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_studio.clock import in_words
from embedding_studio.pages import cookies, paths
from embedding_studio.report_page import templates
from embedding_studio.wire.errors import summarize_field_errors

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def page(scope: Scope, name: str, status: int = 200, **values: Any) -> Response:
    """Return the page of a template. A browser that has no cookie yet gets one for its forms."""
    known = cookies.cookie_of(scope)
    cookie = known or secrets.token_urlsafe(32)
    state, app = scope.get("state", {}), scope["app"].state
    shared = {
        "path": scope["path"],
        "who": state.get("caller"),
        "mlflow_url": app.settings.mlflow_public_url.rstrip("/"),
        "token_name": cookies.TOKEN,
        "token": cookies.token_for(cookie),
        "refresh_seconds": None,
        "is_still": b"still=1" in scope["query_string"].split(b"&"),
    }
    text = templates().get_template(f"pages/{name}.html").render({**shared, **values})
    response = HTMLResponse(text, status, _HEADERS)
    if not known:
        cookies.set_new(scope, response, cookie)
    return response


def see(path: str) -> Response:
    """Return the answer to a form: what to look at now."""
    return RedirectResponse(path, 303, _HEADERS)


def file(name: str, media_type: str) -> Response:
    """Return a file that lies beside the templates."""
    content = files("embedding_studio.pages").joinpath(name).read_bytes()
    headers = {**_HEADERS, "Cache-Control": "max-age=300"}
    return Response(content, 200, headers, media_type)


class ErrorPages:
    """ASGI middleware: turns errors at the page's paths, which are JSON, into pages; crashes too,
    which go on to whoever logs them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not paths.is_page(scope["path"]):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body, is_sent = b"", False

        async def send_as_page(message: Message) -> None:
            nonlocal start, body, is_sent
            is_sent = True
            if message["type"] == "http.response.start" and _is_error(message):
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    await _error_page(scope, start, body)(scope, receive, send)

        try:
            await self._app(scope, receive, send_as_page)
        except Exception:
            if not is_sent:
                detail = "Something went wrong here; the log of the API has it."
                crashed = page(scope, "error", 500, title=HTTPStatus(500).phrase, detail=detail)
                await crashed(scope, receive, send)
            raise


def _is_error(start: Message) -> bool:
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return bool(start["status"] >= 400) and kind == "application/json"


def _error_page(scope: Scope, start: Message, body: bytes) -> Response:
    status, headers = start["status"], Headers(raw=start["headers"])
    if status == 401 and scope["path"] != paths.SIGN_IN:
        return _ask_for_key(scope)
    detail = json.loads(body)["detail"]
    if not isinstance(detail, str):
        detail = summarize_field_errors(detail)
    answer = page(scope, "error", status, title=HTTPStatus(status).phrase, detail=detail)
    if "retry-after" in headers:
        answer.headers["Retry-After"] = headers["retry-after"]
    return answer


def _ask_for_key(scope: Scope) -> Response:
    """Return the way to the form for the key, and from there to what was asked for."""
    wanted = scope["path"]
    if query := scope["query_string"].decode("latin-1"):
        wanted += f"?{query}"
    if scope["method"] not in ("GET", "HEAD"):
        wanted = paths.HOME
    elif Headers(scope=scope).get("sec-fetch-site") in ("cross-site", "same-site"):
        # who follows a link from elsewhere shows no cookie: from a page of ours he does
        return page(scope, "arrive", 401, wanted=wanted)
    return see(f"{paths.SIGN_IN}?{urlencode({'next': wanted})}")


def _minute(moment: datetime | float) -> str:
    return f"{_utc(moment):%Y-%m-%d %H:%M}"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _iso(moment: datetime | float) -> str:
    return _utc(moment).isoformat()


def _utc(moment: datetime | float) -> datetime:
    """Return a time, or Unix seconds, in UTC."""
    return moment if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)


templates().filters.update(
    minute=_minute,
    day=_day,
    iso=_iso,
    duration=in_words,
    segment=lambda text: quote(text, safe=""),
)
