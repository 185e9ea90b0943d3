"""The JSON of OpenAI's embeddings: what is asked, what is answered, and how errors are told.

https://platform.openai.com/docs/api-reference/embeddings"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_studio.serving.batching import Vectors
from embedding_studio.wire.errors import summarize_field_errors

MOST_INPUTS = 2048
"""Texts of one request, as OpenAI has it."""
_TOKENS = "tokens are not taken: send texts, each model has tokens of its own"


def _as_texts(value: Any) -> list[str]:
    """Return the texts of an input. Raises ValueError that says what else it is."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise ValueError("is no text and no list of texts")  # noqa: TRY004 - pydantic words it
    if any(isinstance(text, int | list) for text in texts):
        raise ValueError(_TOKENS)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("is a list with something that is no text")
    if not 0 < len(texts) <= MOST_INPUTS:
        raise ValueError(f"has {len(texts)} texts: one request takes 1 to {MOST_INPUTS}")
    empty = [str(number) for number, text in enumerate(texts) if not text.strip()]
    if empty:
        raise ValueError(f"has empty texts, at {', '.join(empty[:5])}: leave them out")
    return texts


class EmbeddingsBody(BaseModel):
    """OpenAI's fields, and `input_type`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": "Default Fine Tuning Method@champion",
                    "input": ["winter jacket"],
                    "input_type": "query",
                }
            ]
        },
    )

    model: str = Field(description="name or name@champion: the champion; name/3: that version")
    input: Annotated[list[str], BeforeValidator(_as_texts, json_schema_input_type=str | list[str])]
    input_type: Literal["query", "document"] = Field(
        "document", description="what the texts are; of a query the model may make another vector"
    )
    dimensions: int | None = Field(
        None, ge=1, description="cut the vectors to so many; good for models that learnt it alone"
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: of float32, little-endian"
    )
    user: str | None = Field(None, description="is not read")


def cut(vectors: Vectors, dimensions: int | None, is_cosine: bool) -> Vectors:
    """Return the first dimensions of (n, d) vectors; of a model that compares by cosine, as long as
    1 again."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    part = vectors[:, :dimensions]
    if not is_cosine:
        return part
    lengths = np.linalg.norm(part, axis=1, keepdims=True)
    unit: Vectors = part / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def answer_of(vectors: Vectors, model: str, tokens: int, encoding_format: str) -> bytes:
    """Return the JSON of an answer."""
    embeddings: Sequence[Any]
    if encoding_format == "base64":
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        embeddings = [base64.b64encode(row).decode() for row in rows]
    else:
        embeddings = vectors.tolist()
    data = [
        {"object": "embedding", "index": number, "embedding": embedding}
        for number, embedding in enumerate(embeddings)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


_TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", "insufficient_scope"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class OpenAIErrors:
    """ASGI middleware: puts the errors of what is within it into OpenAI's form."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None
        body = b""

        async def send_in_form(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    status, content = in_form(start["status"], body)
                    kept = (b"content-length", b"content-type")
                    headers = [one for one in start["headers"] if one[0] not in kept]
                    headers += [(b"content-type", b"application/json")]
                    headers += [(b"content-length", str(len(content)).encode())]
                    await send({**start, "status": status, "headers": headers})
                    await send({"type": "http.response.body", "body": content})

        await self._app(scope, receive, send_in_form)


def in_form(status: int, body: bytes) -> tuple[int, bytes]:
    """Return an error of ours as OpenAI has it: a status, and JSON."""
    message, param = _detail_of(body)
    status = 400 if status in (413, 422) else status
    default = ("server_error", None) if status >= 500 else ("invalid_request_error", None)
    kind, code = _TYPES.get(status, default)
    error = {"message": message, "type": kind, "param": param, "code": code}
    return status, json.dumps({"error": error}).encode()


def _detail_of(body: bytes) -> tuple[str, str | None]:
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace") or "an internal error", None
    if not isinstance(detail, list):
        return str(detail), None
    errors = [_without_body(error) for error in detail]
    ways = [error["loc"] for error in errors]
    return summarize_field_errors(errors), str(ways[0][0]) if ways and ways[0] else None


def _without_body(error: Mapping[str, Any]) -> dict[str, Any]:
    return {**error, "loc": [step for step in error["loc"] if step != "body"]}
