"""The application, put together from its resources."""

from importlib.metadata import version
from urllib.parse import urlsplit

from fastapi import FastAPI, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import APIKeyHeader, HTTPBearer

from embedding_studio.api import (
    clickstream,
    imports,
    items,
    labels,
    methods,
    models,
    schedules,
    system,
    users,
)
from embedding_studio.api import tasks as fine_tuning
from embedding_studio.api.errors import add_error_handlers, problems
from embedding_studio.api.gate import OPEN_PATHS, Gate, RateLimit
from embedding_studio.api.groups import Groups
from embedding_studio.api.health import Health
from embedding_studio.api.imports import Imports
from embedding_studio.api.keys import KeyRing
from embedding_studio.api.lane import Lane
from embedding_studio.clock import Clock, utc_now
from embedding_studio.errands.webhooks import check_secret
from embedding_studio.errors import ConfigurationError
from embedding_studio.pages import cookies, paths
from embedding_studio.pages import views as pages
from embedding_studio.pages.answers import ErrorPages
from embedding_studio.settings import Settings
from embedding_studio.store import Store


def create_app(store: Store, settings: Settings, clock: Clock = utc_now) -> FastAPI:
    """Return the API over a store that the caller opened and will close.

    Raises ConfigurationError for a rate limit, a webhook secret or an origin that cannot be
    read."""
    check_secret(settings)
    app = FastAPI(
        title="Embedding Studio",
        summary="Turns the clicks of a search product into a better embedding model.",
        version=version("embedding-studio"),
    )
    app.state.store, app.state.settings, app.state.clock = store, settings, clock
    app.state.health = Health(store, settings, clock)
    app.state.groups = Groups()
    app.state.imports = Imports()
    add_error_handlers(app)
    app.state.keys = KeyRing(store, settings, clock)
    app.add_middleware(Lane)
    app.add_middleware(
        Gate,
        keys=app.state.keys,
        rate_limit=RateLimit(settings.rate_limit),
        settings=settings,
        open_paths=OPEN_PATHS | paths.OPEN_PATHS,
        proof_in=cookies.proof_in,
    )
    app.add_middleware(ErrorPages)  # of the gate's refusals too
    if origins := _origins_of(settings):
        # outside the gate: preflights carry no key, and refusals are for the page to read too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    # for the manual alone: it is the gate that reads them
    key_headers = [
        Security(HTTPBearer(auto_error=False)),
        Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
    ]
    nouns = clickstream, items, labels, users, imports, fine_tuning, methods, models, schedules
    for resource in nouns:
        app.include_router(
            resource.router,
            prefix="/api/v1",
            responses=problems(401, 403, 421, 429, 503),
            dependencies=key_headers,
        )
    app.include_router(system.router, prefix="/api/v1")
    app.include_router(pages.router)
    return app


def _origins_of(settings: Settings) -> list[str]:
    origins = [text.strip().rstrip("/") for text in (settings.cors_origins or "").split(",")]
    for origin in filter(None, origins):
        parts = urlsplit(origin)
        is_origin = (
            parts.scheme in ("http", "https") and origin == f"{parts.scheme}://{parts.netloc}"
        )
        if origin != "*" and not (is_origin and parts.hostname and origin == origin.lower()):
            raise ConfigurationError(
                f"ES_CORS_ORIGINS has {origin!r}: write origins as browsers send them, "
                "https://shop.example or http://localhost:3000, with commas between them"
            )
    return [origin for origin in origins if origin]
