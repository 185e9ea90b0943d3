"""What is taken as it is posted, but said in the answer and counted: it may teach nothing."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from embedding_studio.clickstream import BatchCount, Session, SessionEvent, has_content
from embedding_studio.store.clickstream import Registered


@dataclass(frozen=True, slots=True)
class Notices:
    """What is said of a post: warnings for whoever posted it, counts for its batch."""

    warnings: list[str] = field(default_factory=list)
    counts: Counter[BatchCount] = field(default_factory=Counter)


def look_at(posted: Session, outcome: Registered, items: Collection[str] = ()) -> Notices:
    """Return what is to be said of a posted session. items: the object ids that are items."""
    notices = look_at_events(posted.events, outcome)
    if outcome.early_events:
        notices.counts[BatchCount.EARLY_EVENTS] += outcome.early_events
    if outcome.is_new:
        _look_at_results(posted, items, notices)
        if outcome.is_late:
            notices.counts[BatchCount.LATE_SESSIONS] += 1
    elif different := _differences(posted, outcome.stored):
        notices.counts[BatchCount.CHANGED_SESSIONS] += 1
        notices.warnings.append(
            f"the session is known with another {', '.join(different)}: what was stored first stays"
        )
    return notices


def look_at_events(events: Sequence[SessionEvent], outcome: Registered) -> Notices:
    """Return what is to be said of events that were posted to a session."""
    notices = Notices()
    shown = {result.object_id for result in outcome.stored.search_results}
    elsewhere = [event for event in events if event.object_id not in shown]
    if elsewhere:
        # of events that are posted again, none is counted again
        notices.counts[BatchCount.EVENTS_NOT_SHOWN] += min(len(elsewhere), outcome.new_events)
        notices.warnings.append(
            f"{len(elsewhere)} of {len(events)} events are on items that the session did not show "
            f"(event {elsewhere[0].event_id!r} on {elsewhere[0].object_id!r}, say): nothing is "
            "learnt from them"
        )
    if outcome.is_late and not outcome.is_new and outcome.new_events:
        notices.counts[BatchCount.LATE_EVENTS] += outcome.new_events
        notices.warnings.append(
            f"the session's batch {outcome.batch_id} is released already: a task that has "
            "taken its sessions does not see these events"
        )
    return notices


def _look_at_results(posted: Session, items: Collection[str], notices: Notices) -> None:
    unreadable = [
        shown.object_id
        for shown in posted.search_results
        if not has_content(shown) and shown.object_id not in items
    ]
    if unreadable:
        notices.counts[BatchCount.RESULTS_WITHOUT_CONTENT] += len(unreadable)
        notices.warnings.append(
            f"{len(unreadable)} of {len(posted.search_results)} results have neither meta.text nor "
            f"meta.image, and are no items (object_id {unreadable[0]!r}, say): put them as items "
            "(PUT /api/v1/items), or a method that does not look them up elsewhere leaves them out"
        )


def _differences(posted: Session, stored: Session) -> list[str]:
    names = ("search_query", "search_results", "search_meta", "user_id")
    return [name for name in names if getattr(posted, name) != getattr(stored, name)]
