"""What every route works with: the store as the caller sees it, the settings and the clock."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Self

from fastapi import Depends, Request

from embedding_studio.api.keys import Caller
from embedding_studio.clickstream import Usage
from embedding_studio.clock import Clock
from embedding_studio.errors import InvalidInput
from embedding_studio.keys import Scope
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.usage import most_of


@dataclass(frozen=True, slots=True)
class Context:
    """What one request has to work with."""

    #: of the caller's project
    store: Store
    settings: Settings
    clock: Clock
    caller: Caller
    #: whether the caller's key still is valid, for answers that take long
    still_allowed: Callable[[], Awaitable[bool]]

    @classmethod
    def of(cls, request: Request) -> Self:
        state, asking = request.app.state, request.state
        return cls(
            state.store.in_project(asking.caller.project),
            state.settings,
            state.clock,
            asking.caller,
            asking.still_allowed,
        )

    @property
    def most(self) -> Usage:
        """What a project may hold."""
        return most_of(self.settings)

    def page_size(self, limit: int | None, default: int) -> int:
        """Return the limit asked for, the most for 0, or else the default. Raises InvalidInput
        above the most."""
        most = self.settings.max_page_size
        if limit is None:
            return min(default, most)
        if limit == 0:
            return most
        if limit > most:
            raise InvalidInput(
                f"limit is {limit}; a page has at most {most} entries (ES_MAX_PAGE_SIZE)"
            )
        return limit


async def _context_of(request: Request) -> Context:
    return Context.of(request)


OpenContext = Annotated[Context, Depends(_context_of)]
"""Of a route that needs no key."""


class Needs:
    """A route's dependency: a caller with the scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Context:
        context = Context.of(request)
        context.caller.require(self.scope)
        return context


IngestContext = Annotated[Context, Depends(Needs(Scope.INGEST))]
TuneContext = Annotated[Context, Depends(Needs(Scope.TUNE))]
ReadContext = Annotated[Context, Depends(Needs(Scope.READ))]
AdminContext = Annotated[Context, Depends(Needs(Scope.ADMIN))]
