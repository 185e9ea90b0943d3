"""Tasks that come by themselves: at times of the clock, when enough new clicks are there."""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from cronsim import CronSim, CronSimError

from embedding_studio.clickstream import TimeRange, ignored_kinds, merge_weights
from embedding_studio.errors import Conflict, InvalidInput, NotFound, StoreUnavailable
from embedding_studio.schedules import Schedule
from embedding_studio.store import Store
from embedding_studio.tasks import FineTuningTask, TaskRequest

log = logging.getLogger(__name__)

MIN_INTERVAL = timedelta(minutes=1)
MOST_SECONDS = 5.0
"""How long the schedules of one project are looked at before it is the others' turn."""


def next_time(
    cron: str | None, interval_seconds: float | None, first: datetime, after: datetime
) -> datetime:
    """Return the first time of a timing that is later than `after`; intervals count from `first`.

    Raises InvalidInput for a timing that is none, or that never comes."""
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
    store: Store,
    now: datetime,
    most_pending: int,
    weights: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> None:
    """Create the tasks whose time has come: once each, however many workers do this at once.

    The time that is due is the task's idempotency key, so whoever comes second, or again after a
    crash, finds the task there. Times that passed while nobody looked are made up for by one.
    most_pending: of a project's tasks. weights: of events, by the method that says so."""
    spent: defaultdict[str, float] = defaultdict(float)
    for schedule in store.schedules.due(now):
        if spent[schedule.project] > MOST_SECONDS:
            continue  # it stays due
        began = time.monotonic()
        try:
            own = weights.get(schedule.fine_tuning_method, {})
            _run(store.in_project(schedule.project), schedule, now, most_pending, own)
        except StoreUnavailable:
            raise
        except Exception:  # one that cannot be run keeps no other from being run
            log.exception("schedule %s", schedule.id)
        spent[schedule.project] += time.monotonic() - began


def _run(
    store: Store, schedule: Schedule, now: datetime, most_pending: int, weights: Mapping[str, float]
) -> None:
    try:
        task, outcome = _look(store, schedule, now, most_pending, weights)
    except (Conflict, InvalidInput, NotFound) as error:
        task, outcome = None, f"no task: {error}"
    next_at = next_time(schedule.cron, schedule.interval_seconds, schedule.created_at, now)
    store.schedules.advance(schedule, next_at, task.id if task else None, outcome)
    # strangers make schedules that come to nothing, as many as they may
    level = logging.INFO if task else logging.DEBUG
    log.log(level, "schedule %s: %s; next at %s", schedule.id, outcome, next_at.isoformat())


def _look(
    store: Store, schedule: Schedule, now: datetime, most_pending: int, weights: Mapping[str, float]
) -> tuple[FineTuningTask | None, str]:
    """Return the task of this time, if there is one, and what there is to say. Raises Conflict, and
    NotFound for labels that are there no longer."""
    key = f"schedule {schedule.id} at {schedule.next_at.isoformat()}"
    if (task := store.tasks.find(key)) is None:
        made = TimeRange.of(schedule.last, schedule.since, None, now)
        # no task takes anything from another's time range
        whose = None if made is None else schedule.model_name or schedule.fine_tuning_method
        if (rival := store.tasks.waiting_for_batch(whose)) is not None:
            return None, (
                f"no task: task {rival.id} is {rival.status} and has not taken its batch yet; the "
                "new sessions are for it"
            )
        batch = store.clickstream.collecting_batch()
        ignored = ignored_kinds(merge_weights(weights, schedule.event_weights or {}))
        if made is not None and batch is None:
            return None, "no task: no session came since the last release"
        since = None if made is None else made.since
        least, clicked = schedule.min_new_sessions, 0
        if batch is not None:
            clicked = store.clickstream.count_clicked(batch.batch_id, ignored, since)
        if clicked < least:
            told = "new sessions" if made is None else f"sessions made {made}"
            return None, f"no task: {clicked} {told} with clicks of {least}"
    request = TaskRequest(
        schedule.fine_tuning_method,
        metadata=schedule.metadata,
        idempotency_key=key,
        budget=schedule.budget,
        search=schedule.search,
        event_weights=schedule.event_weights,
        promote=schedule.promote,
        folds=schedule.folds,
        webhook_url=schedule.webhook_url,
        last=schedule.last,
        since=schedule.since,
        labels_id=schedule.labels_id,
        judge_labels_id=schedule.judge_labels_id,
        model_name=schedule.model_name,
        initial_model=schedule.initial_model,
        seed=schedule.seed,
        parameters=schedule.parameters,
    )
    for labels_id in request.named_labels:
        store.labels.get(labels_id)
    task, is_new = store.tasks.add(request, now, most_pending)
    return task, f"task {task.id} {'was created' if is_new else 'is there already'}"
