"""What every route works with: the store as the caller sees it, the settings and the clock."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

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


async def _context_of(request: Request) -> AsyncIterator[Context]:
    state = request.app.state
    caller: Caller = request.state.caller
    async with request.state.turns:
        yield Context(
            store=state.store.in_project(caller.project),
            settings=state.settings,
            clock=state.clock,
            caller=caller,
            still_allowed=request.state.still_allowed,
        )


# a turn begins with the body there and ends before the answer is sent: no slow client keeps it
OpenContext = Annotated[Context, Depends(_context_of, scope="function")]
"""Of a route that needs no key."""


class Needs:
    """A route's dependency: a caller with the scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, context: OpenContext) -> Context:
        context.caller.require(self.scope)
        return context


IngestContext = Annotated[Context, Depends(Needs(Scope.INGEST))]
TuneContext = Annotated[Context, Depends(Needs(Scope.TUNE))]
ReadContext = Annotated[Context, Depends(Needs(Scope.READ))]
