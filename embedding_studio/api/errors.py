"""Where errors become HTTP answers: the one place, and how the routes document them."""

import json
import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from embedding_studio.keys import Scope
from embedding_studio.wire.errors import STATUS_BY_ERROR, InvalidRequest, Problem

log = logging.getLogger(__name__)

HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"WWW-Authenticate": 'Bearer realm="embedding-studio"'},
    503: {"Retry-After": "2"},
}

_DESCRIPTIONS = {
    400: "The body cannot be read, or a time in it is too old or in the future",
    401: "No valid API key",
    403: "The API key lacks the scope",
    404: "No such id",
    409: "The present state refuses this",
    413: "The body is too large",
    421: "There are no API keys, and the name that was asked is not this machine's",
    422: "The request can never succeed as it is",
    429: "Too many requests; `Retry-After` says when to come back",
    501: "This installation cannot do this",
    503: "A service behind the API does not answer; worth another try",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route's `responses` says about these statuses."""
    return {
        status: {
            "model": InvalidRequest if status == 422 else Problem,
            "description": _DESCRIPTIONS[status],
        }
        for status in statuses
    }


def describe_fields(errors: Sequence[Any], body: object) -> list[dict[str, Any]]:
    """Return pydantic's errors on a model without what was posted: it may be large, or no valid
    JSON."""
    return [
        {"type": error["type"], "loc": error["loc"], "msg": _say(error, body)} for error in errors
    ]


def _say(error: Mapping[str, Any], body: object) -> str:
    loc = tuple(step for step in error["loc"] if step != "body")
    if error["type"] in ("model_attributes_type", "model_type") and not loc:
        return "the body is no JSON object; is the header Content-Type: application/json there?"
    if error["type"] == "json_invalid":
        return f"the body is no JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    if error["type"] == "extra_forbidden":
        known = _fields_at(body, loc[:-1])
        close = get_close_matches(str(loc[-1]), known, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        return f"no field has this name.{meant} The fields are {', '.join(known)}"
    return str(error["msg"]).removeprefix("Value error, ")


def _fields_at(annotation: Any, way: Sequence[str | int]) -> list[str]:
    """Return the names of the fields of the model to which a way of fields and places leads."""
    model = _model_in(annotation)
    for step in way:
        if isinstance(step, str) and model is not None:
            model = _model_in(model.model_fields[step].annotation)
    return list(model.model_fields) if model is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def answer(
    error: Exception, headers: Mapping[str, str] | None = None, is_admins: bool = False
) -> Response:
    """Return the answer to one of the errors that STATUS_BY_ERROR names.

    What is wrong with the installation tells of hosts and paths: it is logged, and only admins are
    answered with it."""
    status = next(code for kind, code in STATUS_BY_ERROR.items() if isinstance(error, kind))
    detail = str(error)
    if status >= 500 and not is_admins:
        log.warning("answered %d: %s", status, error)
        detail = f"{_DESCRIPTIONS[status]}. Keys of scope admin, and the API's log, are told more"
    return JSONResponse({"detail": detail}, status, headers or HEADERS.get(status))


def add_error_handlers(app: FastAPI) -> None:
    async def answer_error(request: Request, error: Exception) -> Response:
        return answer(error, is_admins=request.state.caller.allows(Scope.ADMIN))

    async def answer_invalid_request(request: Request, error: Exception) -> Response:
        errors = error.errors() if isinstance(error, RequestValidationError) else []
        field = getattr(request.scope.get("route"), "body_field", None)
        described = describe_fields(errors, field and field.field_info.annotation)
        # escaped to ASCII: a posted lone surrogate may be part of a field's name
        body = json.dumps({"detail": described})
        return Response(body, 422, media_type="application/json")

    for kind in STATUS_BY_ERROR:
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid_request)
