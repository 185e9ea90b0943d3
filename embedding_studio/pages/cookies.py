"""The cookie by which a browser is known, and the tokens that its forms carry.

The cookie is a sign-in where a key was shown, and else a random text, under another name: a
browser that comes from another site does not show its sign-in, and is not to lose it. Nobody but
the browser and the API knows the cookie, so a token made of it tells that a form comes from a page
of ours."""

import hmac
from collections.abc import Mapping

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Scope

from embedding_studio.api.keys import key_in
from embedding_studio.errors import Forbidden
from embedding_studio.keys import SIGN_IN_LASTS, PresentedKey, SignIn, read_sign_in
from embedding_studio.pages.paths import is_page

TOKEN = "form_token"
"""The name of the field that carries a form's token."""
_LEAST_LENGTH = 32


def cookie_of(scope: Scope) -> str:
    """Return the cookie that the browser's forms go by, empty where it has none of ours."""
    shown = HTTPConnection(scope).cookies
    if read_sign_in(sign_in := shown.get(_name(scope, "es_page"), "")):
        return sign_in
    text = shown.get(_name(scope, "es_form"), "")
    return text if len(text) >= _LEAST_LENGTH else ""


def proof_in(scope: Scope) -> PresentedKey | SignIn | None:
    """Return by what a request is judged: at the page's paths the sign-in, and only there, for what
    a browser sends by itself is no key to the API."""
    return read_sign_in(cookie_of(scope)) if is_page(scope["path"]) else key_in(scope)


def keep_sign_in(scope: Scope, response: Response, sign_in: str) -> None:
    """Let the browser show a sign-in to pages of this API alone, and no script read it."""
    _set(scope, response, "es_page", sign_in)


def end_sign_in(scope: Scope, response: Response) -> None:
    _set(scope, response, "es_page", "")


def set_new(scope: Scope, response: Response, cookie: str) -> None:
    """Let a browser whose user has not signed in have forms as well."""
    _set(scope, response, "es_form", cookie)


def token_for(cookie: str) -> str:
    """Return what a form of this browser carries."""
    return hmac.new(cookie.encode(), b"form", "sha256").hexdigest()


def check_form(scope: Scope, headers: Mapping[str, str], form: Mapping[str, str]) -> None:
    """Raise Forbidden for a form that another site may have sent."""
    cookie, token = cookie_of(scope), form.get(TOKEN, "")
    # of the browsers that say it; another port of this host is another site too
    is_ours = headers.get("sec-fetch-site", "same-origin") == "same-origin"
    if not (cookie and is_ours and hmac.compare_digest(token.encode(), token_for(cookie).encode())):
        raise Forbidden(
            "the form was not sent by a page of this API, or is older than the sign-in: go back, "
            "load the page again, and send it once more"
        )


def _set(scope: Scope, response: Response, name: str, value: str) -> None:
    response.set_cookie(
        _name(scope, name),
        value,
        max_age=int(SIGN_IN_LASTS.total_seconds()) if value else 0,
        secure=_is_encrypted(scope),
        httponly=True,
        samesite="strict",
    )


def _name(scope: Scope, name: str) -> str:
    # so that no other host can set it, where the browser can tell
    return f"__Host-{name}" if _is_encrypted(scope) else name


def _is_encrypted(scope: Scope) -> bool:
    return bool(scope["scheme"] == "https")
