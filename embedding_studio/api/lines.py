"""Answers of any length: a JSON object a line (NDJSON)."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from embedding_studio.api.errors import problems
from embedding_studio.api.routing import in_turn

One = TypeVar("One")
_NDJSON = "application/x-ndjson"


def lines_described(what: str) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a route that answers so."""
    content = {_NDJSON: {"schema": {"type": "string"}}}
    return {
        200: {"description": f"One {what} a line, as JSON", "content": content},
        **problems(404),
    }


def lines_of(
    pages: AsyncIterator[Sequence[One]],
    view: Callable[[One], BaseModel],
    name: str,
    request: Request,
) -> StreamingResponse:
    """Return the answer with what is on pages, each as its view, to be kept as name.ndjson."""

    def as_lines(page: Iterable[One]) -> bytes:
        return b"".join(view(one).model_dump_json().encode() + b"\n" for one in page)

    async def lines() -> AsyncIterator[bytes]:
        async for page in pages:
            yield await in_turn(request, as_lines, page)

    headers = {"Content-Disposition": f'attachment; filename="{name}.ndjson"'}
    return StreamingResponse(lines(), media_type=_NDJSON, headers=headers)
