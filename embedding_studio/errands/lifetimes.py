"""Sessions that were kept for as long as they may be.

Everything here may be interrupted anywhere, repeated, and done by several workers at once."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from embedding_studio.store import Store

log = logging.getLogger(__name__)


def expire_sessions(
    store: Store,
    lifetime: timedelta,
    now: datetime,
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Delete what came longer ago than a lifetime, of all projects; return how many sessions."""
    before, total = now - lifetime, 0
    for project in store.clickstream.usage():
        expired = store.in_project(project).erasure.expire(before, is_over)
        if expired:
            log.info(
                "project %s: %d sessions are deleted, for they came before %s (ES_KEEP_SESSIONS)",
                project,
                expired,
                before.isoformat(timespec="seconds"),
            )
        total += expired
    return total
