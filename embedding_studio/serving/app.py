"""The application: vectors, the models that there are, and whether it is ready."""

from asyncio import wrap_future
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from embedding_studio.api.context import OpenContext, ReadContext
from embedding_studio.api.errors import add_error_handlers
from embedding_studio.api.gate import OPEN_PATHS, Gate, RateLimit
from embedding_studio.api.keys import KeyRing
from embedding_studio.api.routing import Route
from embedding_studio.clock import Clock, utc_now
from embedding_studio.errors import (
    CorruptModel,
    InvalidInput,
    MethodError,
    NotFound,
    TooManyRequests,
)
from embedding_studio.models import CHAMPION, RegisteredModel, split_reference
from embedding_studio.serving.batching import Batching
from embedding_studio.serving.models import Models
from embedding_studio.serving.openai import EmbeddingsBody, OpenAIErrors, answer_of, cut
from embedding_studio.settings import Settings
from embedding_studio.store import Store

HEALTH_PATH = "/health"
MODEL_HEADER = "X-Model"
VERSION_HEADER = "X-Model-Version"

router = APIRouter(route_class=Route)


def create_app(store: Store, settings: Settings, clock: Clock = utc_now) -> FastAPI:
    """Return the application over a store that the caller opened and will close.

    Its threads, which load and encode, run while it is up."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.models = Models(store, settings)
        app.state.batching = Batching(settings.serve_queue)
        try:
            yield
        finally:
            app.state.models.close()
            await run_in_threadpool(app.state.batching.close)

    app = FastAPI(
        title="Embedding Studio's vectors",
        summary="Registered models in the form of OpenAI's embeddings.",
        version=version("embedding-studio"),
        lifespan=lifespan,
    )
    app.state.store, app.state.settings, app.state.clock = store, settings, clock
    add_error_handlers(app)
    # how often one may ask is bounded by what waits to be encoded
    app.add_middleware(
        Gate,
        keys=KeyRing(store, settings, clock),
        rate_limit=RateLimit(""),
        settings=settings,
        open_paths=OPEN_PATHS | {HEALTH_PATH},
    )
    app.add_middleware(OpenAIErrors)
    app.include_router(router)
    return app


@router.post("/v1/embeddings", summary="Turn texts into vectors", response_class=Response)
async def embed(body: EmbeddingsBody, request: Request, context: ReadContext) -> Response:
    """As OpenAI has it, and `input_type`. `model` of the answer names the version, also when the
    champion was asked for; so do the headers `X-Model` (percent-encoded) and `X-Model-Version`.
    A text that is longer than the model reads is cut, as it was when the model was trained."""
    _check_lengths(body, context.settings)
    state = request.app.state
    try:
        model = await state.models.get(context.store.project, body.model)
    except (CorruptModel, MethodError) as error:
        raise InvalidInput(f"{body.model!r} cannot be served: {error}") from error
    reference = model.reference_in(context.store.project)
    if body.dimensions is not None and body.dimensions > model.width:
        raise InvalidInput(
            f"dimensions: {body.dimensions} are more than the {model.width} that {reference!r} has"
        )
    is_item = body.input_type == "document"
    try:
        encoding = state.batching.submit(model, is_item, body.input)
    except TooManyRequests as error:
        raise HTTPException(429, str(error), {"Retry-After": "1"}) from error
    encoded = await wrap_future(encoding)
    vectors = cut(encoded.vectors, body.dimensions, model.is_cosine)
    given = vectors, reference, encoded.tokens, body.encoding_format
    is_large = vectors.size > 64 * 1024
    content = await run_in_threadpool(answer_of, *given) if is_large else answer_of(*given)
    headers = {MODEL_HEADER: quote(reference), VERSION_HEADER: str(model.number)}
    return Response(content, media_type="application/json", headers=headers)


def _check_lengths(body: EmbeddingsBody, settings: Settings) -> None:
    """Raise InvalidInput for a text that is longer than queries, or items, may be."""
    for number, text in enumerate(body.input):
        if body.input_type == "query" and len(text) > settings.max_query_chars:
            raise InvalidInput(
                f"input {number} has {len(text)} characters: a query has at most "
                f"{settings.max_query_chars} (ES_MAX_QUERY_CHARS)"
            )
        if len(text) > settings.max_meta_bytes:
            raise InvalidInput(
                f"input {number} has {len(text)} characters: a text has at most "
                f"{settings.max_meta_bytes} (ES_MAX_META_BYTES)"
            )


@router.get("/v1/models", summary="List what may be named as `model`")
def list_models(context: ReadContext) -> dict[str, Any]:
    """Each model by its name, which is its champion, and each of its versions that is kept; those
    that other projects share are `owner:name`."""
    models = context.store.models
    there = [(one, one.name_in(context.store.project)) for one in models.of_project()]
    there += [(one, one.name_in(context.store.project)) for one in models.shared()]
    return {"object": "list", "data": [entry for one in there for entry in _entries(*one)]}


@router.get("/v1/models/{model:path}", summary="Read what a `model` is")
def get_model(model: str, context: ReadContext) -> dict[str, Any]:
    name, wanted = split_reference(model)
    found = context.store.models.readable(name)
    if found is None:
        raise NotFound(f"no model {name!r} is registered")
    number = found.named(wanted or CHAMPION).number
    return _entry(found, number, model)


def _entries(model: RegisteredModel, name: str) -> list[dict[str, Any]]:
    numbers = sorted(model.kept_numbers)
    versions = [_entry(model, number, f"{name}/{number}") for number in numbers]
    champion = [{**one, "id": name} for one in versions if one["is_champion"]]
    return champion + versions


def _entry(model: RegisteredModel, number: int, called: str) -> dict[str, Any]:
    version = model.version(number)
    facts = version.model.facts
    return {
        "id": called,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": "embedding-studio",
        "version": number,
        "is_champion": number == model.champion,
        "dimensions": facts and facts.dimensions,
    }


@router.get(HEALTH_PATH, summary="Is it ready")
def health(request: Request, context: OpenContext) -> JSONResponse:
    """503 until the champions that there were at the start are in memory. A store that does not
    answer is told of; what is in memory is served all the same."""
    models: Models = request.app.state.models
    return JSONResponse(
        {
            "status": "ok" if models.are_ready else "starting",
            "store": "ok" if models.store_failure is None else "unavailable",
            "models_in_memory": len(models.references),
        },
        200 if models.are_ready else 503,
    )
