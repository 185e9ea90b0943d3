"""Sessions as they are kept: a document each, with its events as its log."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from embedding_studio.clickstream import (
    CLICK,
    SearchResult,
    Session,
    SessionEvent,
    Usage,
    fresh_events,
)
from embedding_studio.errors import InvalidInput
from embedding_studio.store.codec import Codec, milliseconds
from embedding_studio.store.documents import (
    Document,
    Documents,
    Entry,
    Filter,
    Kind,
    among,
    new_id,
)
from embedding_studio.store.usage import json_size, size_of_events

SESSIONS = Kind(
    "sessions",
    unique=(("project", "session_id"),),
    indexes=(("batch", "kinds"),),
    sparse=(("project", "is_waiting", "id"), ("user_id", "id")),
    fields=("created_at", "is_irrelevant", "size", "events_size"),
)
KINDS = Kind("kinds", indexes=(("project",),))
"""Which `kinds` the sessions of a project have."""
EVENTS_BYTES = 16 * 1024 * 1024
"""What the events of a session come to at most; in MongoDB it is all of the session."""
SESSION = Codec(Session)
_BETWEEN = "\n"  # kinds, in which there is none


class Sessions:
    """The sessions of one project.

    A document's id tells the order in which they came. It `is_waiting` until it is placed, and has
    a `batch` from then on.
    `kinds` are those of the events on shown items, as one text, which is absent when there are
    none. `size` and `events_size` are in bytes.
    """

    def __init__(
        self, documents: Documents, project: str, known_kinds: set[tuple[str, str]]
    ) -> None:
        self._documents = documents
        self._project = project
        #: projects and kinds that are known to be in the database
        self._known_kinds = known_kinds

    def documents(self, sessions: Iterable[Session]) -> list[Document]:
        """Return the documents of new sessions, which `insert` takes."""
        return [self._document(session) for session in sessions]

    def _document(self, session: Session) -> Document:
        content = content_of(session)
        events = fresh_events(session.events)
        return {
            **content,
            "id": new_id(),
            "project": self._project,
            "is_waiting": True,
            "kinds": _kinds_text(session.shown_kinds()),
            "size": json_size(content),
            "events_size": size_of_events(events),
            "log": _entries(events),
        }

    def insert(
        self, documents: Sequence[Document], refused: Mapping[str | None, InvalidInput]
    ) -> list[bool | InvalidInput]:
        """Insert sessions; False for one whose session_id is there.

        refused: what `register_kinds` returned.
        """
        answers = self._documents.insert(SESSIONS, documents)
        return [
            _of_session(document["session_id"], refused.get(document["kinds"]) or answer)
            for document, answer in zip(documents, answers, strict=True)
        ]

    def find(self, session_ids: Collection[str]) -> dict[str, Document]:
        """Return the documents of sessions by their session_ids."""
        try:
            return self._find(session_ids)
        except InvalidInput:  # one of them cannot be stored, so it is not
            found: dict[str, Document] = {}
            for session_id in session_ids:
                with suppress(InvalidInput):
                    found |= self._find([session_id])
            return found

    def _find(self, session_ids: Collection[str]) -> dict[str, Document]:
        which: Filter = {"project": self._project, "session_id": among(session_ids)}
        found = self._documents.find(SESSIONS, which) if session_ids else []
        return {document["session_id"]: document for document in found}

    def read(self, ids: Collection[str], events_limit: int | None = None) -> dict[str, Document]:
        """Return the documents of sessions, in the order of their ids, their first events in them
        as `events`: two queries."""
        found = {one["id"]: one for one in self._documents.find(SESSIONS, {"id": among(ids)})}
        logs = self._documents.logs(SESSIONS, ids, limit=events_limit)
        for its_id, document in found.items():
            document["events"] = logs.get(its_id, [])
        return {its_id: found[its_id] for its_id in ids if its_id in found}

    def sizes(self, where: Filter, limit: int | None = None) -> dict[str, int]:
        """Return the bytes of sessions and their events, by their ids."""
        fields = ("id", "size", "events_size")
        found = self._documents.find(SESSIONS, where, sort=("id",), limit=limit, fields=fields)
        return {one["id"]: one["size"] + one["events_size"] for one in found}

    def fresh(
        self, posted: Sequence[tuple[Document, Sequence[SessionEvent]]]
    ) -> list[list[SessionEvent]]:
        """Return of the events posted to each session those that it does not have."""
        ids = {document["id"] for document, events in posted if events}
        logs = self._documents.logs(SESSIONS, ids) if ids else {}
        known = {its_id: {event["event_id"] for event in log} for its_id, log in logs.items()}
        return [fresh_events(events, known.get(one["id"], ())) for one, events in posted]

    def append(self, seen: Document, fresh: Sequence[SessionEvent]) -> Document | None:
        """Add events that a session does not have; return its document.

        None, and nothing added, where it has changed since it was seen. Raises InvalidInput.
        """
        size = size_of_events(fresh)
        if seen["events_size"] and seen["events_size"] + size > EVENTS_BYTES:
            raise InvalidInput(
                f"session {seen['session_id']!r} would have more than {EVENTS_BYTES} bytes of "
                "events, the most that it may: none of these are kept"
            )
        shown = set(map(object_id_of, seen["search_results"]))
        new_kinds = {event.kind for event in fresh if event.object_id in shown}
        kinds = _kinds_text(new_kinds | _kinds_of(seen.get("kinds")))
        if (refusal := self._register_kinds([kinds]).get(kinds)) is not None:
            raise _of_session(seen["session_id"], refusal)
        try:
            changed = self._documents.change(
                SESSIONS,
                {"id": seen["id"], "events_size": seen["events_size"]},
                set={"kinds": kinds},
                add={"events_size": size},
                append=_entries(fresh),
            )
        except InvalidInput as error:
            raise _of_session(seen["session_id"], error) from None
        return changed.document if changed else None

    def mark(self, session_id: str) -> bool:
        """Mark a session whose results were all wrong; False where it is not there."""
        which = {"project": self._project, "session_id": session_id}
        marked = {"is_irrelevant": True}
        with suppress(InvalidInput):  # an id that cannot be stored, so it is not
            return self._documents.change(SESSIONS, which, set=marked) is not None
        return False

    # -- which kinds of events sessions have -------------------------------------------------------

    def kinds_beside(self, ignored: Collection[str]) -> list[str]:
        """Return all `kinds` of the project with one that is not ignored."""
        found = self._documents.find(KINDS, {"project": self._project}, fields=("kinds",))
        return [one["kinds"] for one in found if _kinds_of(one["kinds"]).difference(ignored)]

    def register_kinds(self, documents: Iterable[Document]) -> Mapping[str | None, InvalidInput]:
        """Keep the `kinds` of sessions that are about to be; return those that cannot be kept."""
        return self._register_kinds([document["kinds"] for document in documents])

    def _register_kinds(self, kinds: Iterable[str | None]) -> dict[str | None, InvalidInput]:
        """Keep that there are such kinds, before there are; return those that cannot be kept."""
        new = {text for text in kinds if text and (self._project, text) not in self._known_kinds}
        documents = [
            {"id": f"{self._project}:{text}", "project": self._project, "kinds": text}
            for text in sorted(new)
        ]
        refused: dict[str | None, InvalidInput] = {}
        answers = self._documents.insert(KINDS, documents) if documents else []
        for document, answer in zip(documents, answers, strict=True):
            if isinstance(answer, InvalidInput):
                refused[document["kinds"]] = answer
            elif len(self._known_kinds) < 100_000:
                self._known_kinds.add((self._project, document["kinds"]))
        return refused


def content_of(session: Session) -> Document:
    """Return what is kept of a session as it was posted, but for its events; what is empty is left
    out."""
    # written out, here and for events: each session that is posted comes by
    return {
        "session_id": session.session_id,
        "search_query": session.search_query,
        "search_results": [*map(_result_of, session.search_results)],
        "created_at": milliseconds(session.created_at),
        **({"search_meta": session.search_meta} if session.search_meta else {}),
        "user_id": session.user_id,
        "is_irrelevant": session.is_irrelevant,
    }


def _result_of(result: SearchResult) -> Document | str:
    """Return a result as it is kept: its id alone, where that is all there is."""
    beside: Document = {} if result.rank is None else {"rank": result.rank}
    if result.meta:
        beside["meta"] = result.meta
    return {"object_id": result.object_id, **beside} if beside else result.object_id


def object_id_of(result: Document | str) -> str:
    """Return the object id of a result as it is kept."""
    return result if isinstance(result, str) else str(result["object_id"])


def usage_of(documents: Iterable[Document]) -> Usage:
    """Return what sessions come to with their events, by their documents."""
    sizes = [one["size"] + one["events_size"] for one in documents]
    return Usage(len(sizes), sum(sizes))


def session_of(document: Document) -> Session:
    """Return a session with those of its events that its document brings."""
    results = [
        {"object_id": one} if isinstance(one, str) else one for one in document["search_results"]
    ]
    return SESSION.decode({"events": [], **document, "search_results": results})


def _kinds_text(kinds: Iterable[str]) -> str | None:
    return _BETWEEN.join(sorted(kinds)) if kinds else None


def _kinds_of(text: str | None) -> set[str]:
    return set(text.split(_BETWEEN)) if text else set()


def _entries(events: Iterable[SessionEvent]) -> list[Entry]:
    return [
        Entry(
            event.event_id,
            {
                "event_id": event.event_id,
                "object_id": event.object_id,
                "created_at": milliseconds(event.created_at),
                **({} if event.event_type == CLICK else {"event_type": event.event_type}),
                **({"meta": event.meta} if event.meta else {}),
            },
        )
        for event in events
    ]


def _of_session(session_id: str, answer: Any) -> Any:
    if isinstance(answer, InvalidInput):
        return InvalidInput(f"session {session_id!r}: {answer}")
    return answer
