"""A task's history as server-sent events."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from embedding_studio.errors import StoreUnavailable
from embedding_studio.store import Store
from embedding_studio.tasks import TERMINAL
from embedding_studio.wire.tasks import TaskEventView

POLL_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 15.0
PAGE = 100


async def follow_events(
    store: Store, task_id: str, after_number: int, still_allowed: Callable[[], Awaitable[bool]]
) -> AsyncIterator[bytes]:
    """Yield each event once it is there, and end when the task has ended, or the caller's key.

    While the database does not answer, it waits: nothing is left out."""
    last_sent = time.monotonic()
    while await still_allowed():
        try:
            # the status first: what had ended by then has no event after those that follow
            task = await run_in_threadpool(store.tasks.get, task_id)
            events = await run_in_threadpool(store.tasks.events, task_id, after_number, PAGE)
        except StoreUnavailable:
            events = []
        else:
            if not events and task.status in TERMINAL:
                return
        for numbered in events:
            view = TaskEventView.of(numbered)
            yield format_sse_event(
                data_str=view.model_dump_json(), event=view.kind, id=str(view.number)
            )
            after_number = view.number
        if events:
            last_sent = time.monotonic()
            continue
        if time.monotonic() - last_sent > KEEP_ALIVE_SECONDS:
            yield KEEPALIVE_COMMENT
            last_sent = time.monotonic()
        await asyncio.sleep(POLL_SECONDS)
