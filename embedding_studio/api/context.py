"""What every route works with: the store, the settings and the clock."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request

from embedding_studio.errors import InvalidInput
from embedding_studio.settings import Settings
from embedding_studio.store.base import Store


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Context:
    store: Store
    settings: Settings
    clock: Callable[[], datetime]

    def page_size(self, limit: int | None, default: int) -> int:
        """Return the limit asked for, or else the default. Raises InvalidInput above the most."""
        most = self.settings.max_page_size
        if limit is None:
            return min(default, most)
        if limit > most:
            raise InvalidInput(f"limit is {limit}; a page has at most {most} entries")
        return limit


async def _context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


InContext = Annotated[Context, Depends(_context_of)]
