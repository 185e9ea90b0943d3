"""Tasks that come by themselves: at times of the clock, when enough new clicks are there."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from cronsim import CronSim, CronSimError

from embedding_studio.clickstream import ignored_kinds, merge_weights
from embedding_studio.errors import InvalidInput
from embedding_studio.store.base import Store
from embedding_studio.tasks import Schedule, TaskRequest

log = logging.getLogger(__name__)

MIN_INTERVAL = timedelta(minutes=1)


def next_time(
    cron: str | None, interval_seconds: float | None, first: datetime, after: datetime
) -> datetime:
    """Return the first time of a timing that is later than `after`; intervals count from `first`.

    Raises InvalidInput for a timing that is none, or that never comes.
    """
    if (cron is None) == (interval_seconds is None):
        raise InvalidInput("a schedule has either cron or interval_seconds, not both and not none")
    if interval_seconds is not None:
        interval = timedelta(seconds=interval_seconds)
        if interval < MIN_INTERVAL:
            raise InvalidInput(f"interval_seconds is {interval_seconds:g}; at least 60 are needed")
        return first + ((after - first) // interval + 1) * interval
    assert cron is not None
    if len(cron.split()) != 5:
        raise InvalidInput(f"cron is {cron!r}; five fields are needed: 30 3 * * 1")
    try:
        return next(CronSim(cron, after.astimezone(UTC)))
    except (CronSimError, StopIteration) as error:
        what = str(error) or "a time that never comes"
        raise InvalidInput(
            f"cron is {cron!r}: {what}; it takes minute, hour, day of month, month and day of "
            "week: 30 3 * * 1"
        ) from error


def run_due(
    store: Store, now: datetime, weights: Mapping[str, Mapping[str, float]] = MappingProxyType({})
) -> None:
    """Create the tasks whose time has come: once each, however many workers do this at once.

    The time that is due is the task's idempotency key, so whoever comes second, or again after a
    crash, finds the task there. Times that passed while nobody looked are made up for by one.
    weights: of events, by the method that says so.
    """
    for schedule in store.due_schedules(now):
        view = store.in_project(schedule.project)
        of_method = weights.get(schedule.fine_tuning_method, {})
        task_id, outcome = _look(view, schedule, now, of_method)
        next_at = next_time(schedule.cron, schedule.interval_seconds, schedule.created_at, now)
        if store.advance_schedule(schedule, next_at, task_id, outcome):
            log.info("schedule %s: %s; next at %s", schedule.id, outcome, next_at.isoformat())


def _look(
    store: Store, schedule: Schedule, now: datetime, weights: Mapping[str, float]
) -> tuple[str | None, str]:
    """Return the id of the task that was created, if one was, and what there is to say."""
    batch, ignored = (
        store.collecting_batch(),
        ignored_kinds(merge_weights(weights, schedule.event_weights or {})),
    )
    clicked = 0 if batch is None else store.count_clicked_sessions(batch.batch_id, ignored)
    if clicked < schedule.min_new_sessions:
        return None, f"no task: {clicked} new sessions with clicks of {schedule.min_new_sessions}"
    request = TaskRequest(
        schedule.fine_tuning_method,
        metadata=schedule.metadata,
        idempotency_key=f"schedule {schedule.id} at {schedule.next_at.isoformat()}",
        budget=schedule.budget,
        search=schedule.search,
        event_weights=schedule.event_weights,
        webhook_url=schedule.webhook_url,
    )
    task, is_new = store.add_task(request, now)
    return task.id, f"task {task.id} {'was created' if is_new else 'is there already'}"
