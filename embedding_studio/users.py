"""The people whose searches are kept, by the ids that sessions have."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Erased:
    """What erasing a person came to; with something kept, it is to be repeated."""

    #: that are gone, with their events
    sessions: int
    #: that are in batches which tasks learn from that have not ended
    kept_sessions: int
    #: the ids of these tasks
    held_by: tuple[str, ...] = ()
