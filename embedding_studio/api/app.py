"""The application, put together from its resources."""

from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version

from fastapi import FastAPI

from embedding_studio.api import clickstream, fine_tuning, system
from embedding_studio.api.context import Context, utc_now
from embedding_studio.api.errors import add_error_handlers, problems
from embedding_studio.settings import Settings
from embedding_studio.store.base import Store


def create_app(
    store: Store, settings: Settings, clock: Callable[[], datetime] = utc_now
) -> FastAPI:
    """Return the API over a store that the caller opened and will close."""
    app = FastAPI(
        title="Embedding Studio",
        summary="Turns the clicks of a search product into a better embedding model.",
        version=version("embedding-studio"),
    )
    app.state.context = Context(store, settings, clock)
    add_error_handlers(app)
    for resource in (clickstream.router, fine_tuning.router):
        app.include_router(resource, prefix="/api/v1", responses=problems(503))
    app.include_router(system.router, prefix="/api/v1")
    return app
