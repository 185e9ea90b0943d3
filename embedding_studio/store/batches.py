"""Batches: which sessions were collected together, and the number of each.

A session that is posted has neither a batch nor a number. It gets both when its batch is read or
released, together with up to BLOCK others, by a block: a document with their ids in order. A batch
is a chain of blocks, and block k+1 is inserted by one process only, which has first marked all
sessions of block k. So a session is in exactly one block, and numbers have no gaps, whichever
process dies at whichever step; whoever comes next goes on. Only an erased session leaves its number
empty (see `users`): blocks go on naming it. A release closes the chain with an end block. What was
not placed by then belongs to the next batch."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

from embedding_studio.clickstream import (
    IGNORED_KINDS,
    BatchCount,
    BatchStatus,
    SessionBatch,
    TimeRange,
)
from embedding_studio.errors import Conflict, NotFound, unknown
from embedding_studio.store.codec import Codec, milliseconds, moment_of
from embedding_studio.store.documents import (
    Document,
    Documents,
    Filter,
    Kind,
    above,
    absent,
    among,
    new_id,
    up_to,
)
from embedding_studio.store.projects import PROJECTS, Projects
from embedding_studio.store.sessions import SESSIONS, Sessions
from embedding_studio.store.tasks import TASKS
from embedding_studio.store.usage import PAGE_BYTES
from embedding_studio.tasks import TERMINAL, TaskStatus, release_id_of

Value = TypeVar("Value")

BLOCK = 1000
"""How many sessions a block places at most."""
MOST_AHEAD = timedelta(days=1)
"""How long before the time at which it was made, by a clock that is ahead, a session may come."""
RELEASING, DELETING = "releasing", "deleting"
"""A batch whose release has begun is to the outside still collecting; one whose deletion has begun
is gone."""
NOT_ENDED = among(sorted(set(TaskStatus) - TERMINAL))

BATCHES = Kind(
    "batches",
    unique=(("project", "release_id"),),
    indexes=(("project", "status", "released_at", "id"),),
)
BLOCKS = Kind("blocks", indexes=(("batch", "number"), ("batch", "last", "first")))
BATCH = Codec(SessionBatch)


class Batches:
    """The batches of one project."""

    def __init__(self, documents: Documents, project: str, sessions: Sessions) -> None:
        self._documents = documents
        self._project = project
        self._sessions = sessions
        self._projects = Projects(documents)
        self._unplaced: Filter = {"project": project, "is_waiting": True}

    def open(self, seen: Document, now: datetime) -> Document:
        """Have a batch collect; return the project's document, which names it as `batch`.

        seen: the project's document."""
        if "batch" not in seen:
            opened = {"batch": new_id(), "opened_at": milliseconds(now)}
            which: Filter = {"id": self._project, "batch": absent}
            changed = self._documents.change(PROJECTS, which, set=opened)
            # when somebody else opened one, its sessions may already be released
            seen = changed.document if changed else {**seen, **opened, **self._project_now()}
            if changed:
                self._insert(seen)
        return seen

    def _insert(self, project: Document) -> None:
        """Insert the batch that the project's document names, if nobody has."""
        batch = {
            "id": project["batch"],
            "project": self._project,
            "status": BatchStatus.COLLECTING.value,
            "created_at": project["opened_at"],
            "since": project.get("since"),
            "counts": {},
        }
        self._documents.insert_one(BATCHES, batch)

    def _project_now(self) -> Document:
        return self._documents.find_one(PROJECTS, {"id": self._project}) or {}

    def collecting_id(self) -> str | None:
        """Return the id of the batch that collects, None where none does; whatever has no place
        once this was asked is in none that was released before."""
        batch = self._collecting()
        return None if batch is None else str(batch["id"])

    # -- placing sessions --------------------------------------------------------------------------

    def place_all(self) -> None:
        """Give a batch and a number to every session that has come."""
        if (collecting := self._collecting()) is not None:
            self._place(collecting["id"])

    def expect_gaps(self, batch_ids: Collection[str]) -> None:
        """Have the sessions of batches be counted: numbers are to tell no longer how many there
        are."""
        which: Filter = {"id": among(sorted(batch_ids)), "project": self._project}
        self._documents.change_all(BATCHES, which, {"has_gaps": True})

    def _place(self, batch_id: str, last_id: str | None = None) -> int:
        """Place the sessions that have no place yet; return the last number of the batch.

        last_id: of the last session that belongs to the batch, after which it is closed. None: the
        batch goes on collecting."""
        upto: Filter = {} if last_id is None else {"id": up_to(last_id)}
        while True:
            last = self._marked(batch_id)
            if last["is_end"]:
                return int(last["last"])
            waiting = self._documents.find(
                SESSIONS, {**self._unplaced, **upto}, sort=("id",), limit=BLOCK, fields=("id",)
            )
            if not waiting and last_id is None:
                return int(last["last"])
            block = {
                "id": f"{batch_id}:{last['number'] + 1}",
                "batch": batch_id,
                "number": last["number"] + 1,
                "first": last["last"] + 1,
                "last": last["last"] + len(waiting),
                "ids": [session["id"] for session in waiting],
                "is_end": not waiting,
            }
            # where another process was quicker, its block is looked at next
            self._documents.insert_one(BLOCKS, block)

    def _marked(self, batch_id: str) -> Document:
        """Return the last block of a batch, whose sessions, and those of all others, are marked."""
        last = self._last_block(batch_id)
        if last["ids"]:
            which: Filter = {"id": among(last["ids"]), "is_waiting": True}
            placed = {"batch": batch_id, "is_waiting": None}
            self._documents.change_all(SESSIONS, which, placed)
        return last

    def _last_block(self, batch_id: str) -> Document:
        last = self._documents.find(
            BLOCKS, {"batch": batch_id}, sort=("number",), descending=True, limit=1
        )
        return last[0] if last else {"number": 0, "last": 0, "ids": [], "is_end": False}

    # -- releases ----------------------------------------------------------------------------------

    def release(self, release_id: str, now: datetime, batch_id: str | None = None) -> SessionBatch:
        while True:
            collecting = self._releasable()
            # Asked only now: if this very release took that batch meanwhile, it is seen here.
            if (released := self.find_release(release_id)) is not None:
                return released
            if collecting is None or batch_id not in (None, collecting["id"]):
                raise _cannot_release(self.get(batch_id) if batch_id else None)
            newest = self._documents.find(
                SESSIONS, self._unplaced, sort=("id",), descending=True, limit=1
            )
            self._documents.change(
                BATCHES,
                {"id": collecting["id"], "status": BatchStatus.COLLECTING.value},
                set={
                    "status": RELEASING,
                    "release_id": release_id,
                    "released_at": milliseconds(now),
                    # clocks of other processes may be ahead
                    "last_id": max([new_id(), *(session["id"] for session in newest)]),
                },
            )

    def find_release(self, release_id: str) -> SessionBatch | None:
        which = {"project": self._project, "release_id": release_id}
        released = self._documents.find_one(BATCHES, which)
        if released is None or released["status"] == DELETING:
            return None
        return self._view(released)

    def _releasable(self) -> Document | None:
        """Return the batch that collects, if it has a session."""
        batch = self._collecting()
        if batch is None or not self._count(batch):
            return None
        return batch

    def _collecting(self) -> Document | None:
        while True:
            project = self._project_now()
            if "batch" not in project:
                # what came while the last batch was being released
                if "since" not in project or not self._documents.count(SESSIONS, self._unplaced):
                    return None
                opened = {"batch": new_id(), "opened_at": project["since"]}
                which: Filter = {"id": self._project, "batch": absent}
                self._documents.change(PROJECTS, which, set=opened)
                continue
            batch = self._documents.find_one(BATCHES, {"id": project["batch"]})
            if batch is None:
                self._insert(project)
            elif batch["status"] == BatchStatus.COLLECTING:
                return batch
            else:
                self._finish(batch)

    def _finish(self, batch: Document) -> Document:
        """Complete a release that has begun: any process may, and any number of them."""
        count = self._place(batch["id"], batch["last_id"])
        self._documents.change(
            PROJECTS,
            {"id": self._project, "batch": batch["id"]},
            set={"batch": None, "since": batch["released_at"]},
        )
        released = {"status": BatchStatus.RELEASED.value, "session_count": count}
        which = {"id": batch["id"], "status": RELEASING}
        self._documents.change(BATCHES, which, set=released)
        return {**batch, **released}

    def get(self, batch_id: str) -> SessionBatch:
        return self._view(self._find(batch_id))

    def collecting(self) -> SessionBatch | None:
        batch = self._releasable()
        return None if batch is None else self._view(batch)

    def page(self, skip: int, limit: int) -> list[SessionBatch]:
        if limit < 1:
            return []
        collecting = self.collecting()
        first = [] if collecting is None else [collecting]
        released = self._documents.find(
            BATCHES,
            {"project": self._project, "status": BatchStatus.RELEASED.value},
            sort=("released_at", "id"),
            descending=True,
            skip=max(skip - len(first), 0),
            limit=limit,
        )
        return [*first[skip:], *map(self._view, released)][:limit]

    def _find(self, batch_id: str) -> Document:
        batch = self._documents.find_one(BATCHES, {"id": batch_id, "project": self._project})
        if batch is None and self._project_now().get("batch") == batch_id:
            batch = self._collecting()
        if batch is None or batch["status"] == DELETING:
            raise unknown("batch", batch_id)
        return batch

    def _view(self, batch: Document) -> SessionBatch:
        if batch["status"] == RELEASING:
            batch = self._finish(batch)
        count = batch.get("session_count")
        if count is None or batch.get("has_gaps"):
            count = self._count(batch)
        return BATCH.decode({**batch, "batch_id": batch["id"], "session_count": count})

    def _count(self, batch: Document, where: Filter | None = None) -> int:
        """Return how many sessions a batch has: placed ones, and while it collects all others."""
        where = where or {}
        placed = {"project": self._project, "batch": batch["id"]}
        if batch["status"] != BatchStatus.COLLECTING:
            return self._documents.count(SESSIONS, {**placed, **where})
        while True:
            last = self._marked(batch["id"])
            count = self._documents.count(SESSIONS, {**placed, **where})
            if not last["is_end"]:
                count += self._documents.count(SESSIONS, {**self._unplaced, **where})
            if self._last_block(batch["id"])["number"] == last["number"]:
                return count  # none was placed between the two counts

    # -- what is asked of a batch ------------------------------------------------------------------

    def add_counts(self, batch_id: str, counts: Mapping[BatchCount, int]) -> None:
        added = {f"counts.{name}": count for name, count in counts.items()}
        batch = {"id": batch_id, "project": self._project}
        if self._documents.change(BATCHES, batch, add=added) is None:
            self._find(batch_id)
            self._documents.change(BATCHES, batch, add=added)

    def count_clicked(
        self,
        batch_id: str,
        ignored_kinds: Collection[str] = IGNORED_KINDS,
        since: datetime | None = None,
    ) -> int:
        batch = self._find(batch_id)
        counted = self._sessions.kinds_beside(ignored_kinds)
        clicked: list[Filter] = [
            {"kinds": among(some), "is_irrelevant": False} for some in pages(counted)
        ]
        if since is None:
            return sum(self._count(batch, some) for some in clicked)
        made: Filter = {"created_at": above(milliseconds(since) - 1)}
        within = self.of_range(TimeRange(since, None), self._view(batch))
        others = [one.batch_id for one in within if one.batch_id != batch_id]
        placed: Filter = {"project": self._project, "batch": among(others), **made}
        return sum(
            self._count(batch, {**some, **made})
            + self._documents.count(SESSIONS, {**placed, **some})
            for some in clicked
        )

    def of_range(self, made: TimeRange, last: SessionBatch | None = None) -> list[SessionBatch]:
        self._collecting()  # which completes a release that has begun
        released: dict[str, Any] = {
            "project": self._project,
            "status": BatchStatus.RELEASED.value,
        }
        if made.since is not None:
            released["released_at"] = above(milliseconds(made.since - MOST_AHEAD))
        found = self._documents.find(BATCHES, released, sort=("released_at", "id"))
        if last is not None and last.released_at is not None:
            latest = (milliseconds(last.released_at), last.batch_id)
            found = [one for one in found if (one["released_at"], one["id"]) <= latest]
        batches = [self._view(one) for one in found]
        if last is not None and last.batch_id not in {one.batch_id for one in batches}:
            batches.append(last)
        return batches

    def begun_before(self, moment: datetime) -> list[str]:
        """Return the ids of the batches that may hold what came before a moment."""
        which: Filter = {"project": self._project, "created_at": up_to(milliseconds(moment))}
        return [one["id"] for one in self._documents.find(BATCHES, which, fields=("id",))]

    def read(
        self, batch_id: str, after_number: int, limit: int, events_limit: int | None = None
    ) -> dict[int, Document]:
        batch = self._find(batch_id)
        if limit < 1:
            return {}
        self._place_in(batch)
        after, window = after_number, limit
        while numbers := self._numbers(batch_id, after, after + window):
            ids = self._fitting(list(numbers), max(PAGE_BYTES, 1024 * limit))[:limit]
            if stored := self._sessions.read(ids, events_limit):
                return {numbers[its_id]: document for its_id, document in stored.items()}
            after, window = numbers[ids[-1]] if ids else max(numbers.values()), BLOCK
        return {}

    def last_number(self, batch_id: str) -> int:
        self._place_in(self._find(batch_id))
        return int(self._last_block(batch_id)["last"])

    def _place_in(self, batch: Document) -> None:
        """Give a number to every session of a batch."""
        if batch["status"] == RELEASING:
            self._finish(batch)
        elif batch["status"] == BatchStatus.COLLECTING:
            self._place(batch["id"])

    def _numbers(self, batch_id: str, above_number: int, last_number: int) -> dict[str, int]:
        """Return the numbers of sessions above one and up to another, by their ids."""
        overlapping: Filter = {
            "batch": batch_id,
            "last": above(above_number),
            "first": up_to(last_number),
        }
        return {
            its_id: number
            for block in self._documents.find(BLOCKS, overlapping, sort=("last",))
            for number, its_id in enumerate(block["ids"], start=block["first"])
            if above_number < number <= last_number
        }

    def _fitting(self, ids: Sequence[str], most_bytes: int) -> list[str]:
        """Return as many ids of what is there as a page has room for, or the first."""
        sizes = self._sessions.sizes({"id": among(ids)})
        page: list[str] = []
        total = 0
        for its_id in filter(sizes.__contains__, ids):
            total += sizes[its_id]
            if page and total > most_bytes:
                break
            page.append(its_id)
        return page

    # -- deletion ----------------------------------------------------------------------------------

    def delete_older(self, keep: int) -> list[str]:
        needed = self.needed()
        released: Filter = {"project": self._project, "status": BatchStatus.RELEASED.value}
        for batch in self._documents.find(
            BATCHES, released, sort=("released_at", "id"), descending=True, skip=keep
        ):
            if batch["id"] not in needed:
                # from here on nobody finds it, and whoever comes after an interruption goes on
                self._documents.change(BATCHES, {"id": batch["id"]}, set={"status": DELETING})
        deleting: Filter = {"project": self._project, "status": DELETING}
        leaving = [batch["id"] for batch in self._documents.find(BATCHES, deleting)]
        for batch_id in leaving:
            self._documents.delete(SESSIONS, {"project": self._project, "batch": batch_id})
            self._documents.delete(BLOCKS, {"batch": batch_id})
        if leaving:
            self._count_anew()
            # last of all: until then what they took is counted anew after an interruption
            self._documents.delete(BATCHES, {"id": among(leaving), "project": self._project})
        return leaving

    def needed(self) -> dict[str, set[str]]:
        """Return the batches that tasks which have not ended learn from, with these tasks."""
        which: Filter = {"project": self._project, "status": NOT_ENDED}
        needed: defaultdict[str, set[str]] = defaultdict(set)
        fields = ("id", "batch_id", "batch_ids", "since", "until")
        for task in self._documents.find(TASKS, which, fields=fields):
            batch_ids = [task["batch_id"]] if "batch_id" in task else []
            batch_ids += task.get("batch_ids", ())
            since, until = (task.get(name) for name in ("since", "until"))
            if since is not None or until is not None:
                made = TimeRange(None if since is None else moment_of(since), None)
                batch_ids += [batch.batch_id for batch in self.of_range(made)]
            if not batch_ids and (taken := self.find_release(release_id_of(task["id"]))):
                batch_ids = [taken.batch_id]  # which the task does not say yet
            for batch_id in batch_ids:
                needed[batch_id].add(task["id"])
        return dict(needed)

    def _count_anew(self) -> None:
        """Sum up what the project holds, give or take what is added meanwhile."""
        before = self._project_now()
        sessions = size = 0
        for page in self._sizes():
            sessions, size = sessions + len(page), size + sum(page.values())
        size += before.get("other_bytes", 0)
        change = {"sessions": sessions - before["sessions"], "bytes": size - before["bytes"]}
        self._documents.change(PROJECTS, {"id": self._project}, add=change)

    def _sizes(self) -> Iterator[dict[str, int]]:
        """Give the bytes of all sessions, by their ids."""
        last = ""
        while page := self._sessions.sizes({**self._unplaced, "id": above(last)}, limit=BLOCK):
            yield page
            last = max(page)
        for batch in self._documents.find(BATCHES, {"project": self._project}, fields=("id",)):
            which: Filter = {"batch": batch["id"]}
            for block in self._documents.each(BLOCKS, which, sort=("number",)):
                yield self._sessions.sizes({"id": among(block["ids"])})


def pages(values: Iterable[Value]) -> Iterator[list[Value]]:
    """Give values by BLOCKs."""
    rest = iter(values)
    while page := list(islice(rest, BLOCK)):
        yield page


def _cannot_release(named: SessionBatch | None) -> NotFound | Conflict:
    """Return the refusal to release; named: the batch that was asked for, which has been taken."""
    if named is None:
        return NotFound("nothing to release: no session came since the last release")
    return Conflict(
        f"batch {named.batch_id!r} is released already, as {named.release_id!r}: a batch is taken "
        "once; post more sessions, or name it in batch_id to learn from it again"
    )
