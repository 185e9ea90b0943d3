"""Documents in the memory of one process: the fast fake for tests, shared by threads only."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

from embedding_studio.errors import InvalidInput
from embedding_studio.store.documents import (
    Changed,
    Document,
    Documents,
    Entry,
    Filter,
    Kind,
    op_of,
)

HOLDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "equal": lambda found, value: found == value,
    "absent": lambda found, value: found is None,
    "among": lambda found, value: found in value,
    "above": lambda found, value: found is not None and found > value,
    "up to": lambda found, value: found is not None and found <= value,
}


@dataclass(slots=True)
class _Table:
    """The documents of one kind."""

    documents: dict[str, Document] = field(default_factory=dict)
    logs: dict[str, list[Entry]] = field(default_factory=dict)
    #: the id of the document that has these values in this unique group
    unique: dict[tuple[Any, ...], str] = field(default_factory=dict)


class MemoryDocuments(Documents):
    """Documents in dictionaries, behind one lock."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._tables: dict[str, _Table] = defaultdict(_Table)

    def insert(self, kind: Kind, documents: Sequence[Document]) -> list[bool | InvalidInput]:
        with self._lock:
            return [self._insert(kind, document) for document in documents]

    def _insert(self, kind: Kind, document: Document) -> bool:
        table = self._tables[kind.name]
        kept = _present(document)
        log = kept.pop("log", [])
        kept = _copy(kept)
        keys = _unique_keys(kind, kept)
        if kept["id"] in table.documents or any(key in table.unique for key in keys):
            return False
        table.documents[kept["id"]] = kept
        table.logs[kept["id"]] = []
        _append(table.logs[kept["id"]], log)
        table.unique.update(dict.fromkeys(keys, kept["id"]))
        return True

    def find(
        self,
        kind: Kind,
        where: Filter,
        *,
        sort: Sequence[str] = (),
        descending: bool = False,
        skip: int = 0,
        limit: int | None = None,
        fields: Collection[str] | None = None,
    ) -> list[Document]:
        def place(document: Document) -> list[tuple[bool, Any]]:
            return [(document.get(name) is not None, document.get(name)) for name in sort]

        with self._lock:
            found = list(self._meeting(kind, where))
            if sort:
                found.sort(key=place, reverse=descending)
            end = None if limit is None else skip + limit
            return [
                _copy({name: document[name] for name in fields if name in document})
                if fields is not None
                else _copy(document)
                for document in found[skip:end]
            ]

    def _meeting(self, kind: Kind, where: Filter) -> Iterator[Document]:
        """Give the documents that meet a filter; one that names them by their ids or by a unique
        group takes no look at the others."""
        table = self._tables[kind.name]
        conditions = {name: op_of(condition) for name, condition in where.items()}
        equals = {name: op.value for name, op in conditions.items() if op.word == "equal"}
        candidates: Iterable[str | None] = list(table.documents)
        named = _unique_keys(kind, equals)
        if "id" in equals:
            candidates = [equals["id"]]
        elif named:
            candidates = [table.unique.get(named[0])]
        elif "id" in conditions and conditions["id"].word == "among":
            candidates = dict.fromkeys(conditions["id"].value)
        for its_id in candidates:
            document = table.documents.get(its_id or "")
            if document is not None and all(
                HOLDS[op.word](document.get(name), op.value) for name, op in conditions.items()
            ):
                yield document

    def change(
        self,
        kind: Kind,
        where: Filter,
        *,
        set: Mapping[str, Any] | None = None,  # noqa: A002 - the word for it
        add: Mapping[str, int] | None = None,
        append: Sequence[Entry] = (),
    ) -> Changed | None:
        with self._lock:
            before = next(self._meeting(kind, where), None)
            if before is None:
                return None
            after = _copy(_present({**before, **(set or {})}))
            for name, number in (add or {}).items():
                *path, last = name.split(".")
                parent = after
                for part in path:
                    parent = parent.setdefault(part, {})
                parent[last] = parent.get(last, 0) + number
            if not self._replace(kind, before, after):
                return None
            appended = _append(self._tables[kind.name].logs[after["id"]], append)
            return Changed(_copy(after), appended)

    def _replace(self, kind: Kind, before: Document, after: Document) -> bool:
        table = self._tables[kind.name]
        new_keys = _unique_keys(kind, after)
        if any(table.unique.get(key, after["id"]) != after["id"] for key in new_keys):
            return False
        self._forget_keys(kind, before)
        table.unique.update(dict.fromkeys(new_keys, after["id"]))
        table.documents[after["id"]] = after
        return True

    def _forget_keys(self, kind: Kind, document: Document) -> None:
        for key in _unique_keys(kind, document):
            del self._tables[kind.name].unique[key]

    def change_all(self, kind: Kind, where: Filter, set: Mapping[str, Any]) -> int:  # noqa: A002
        with self._lock:
            found = list(self._meeting(kind, where))
            return sum(
                self._replace(kind, document, _copy(_present({**document, **set})))
                for document in found
            )

    def logs(
        self, kind: Kind, ids: Collection[str], *, after: int = 0, limit: int | None = None
    ) -> dict[str, list[Any]]:
        end = None if limit is None else after + limit
        with self._lock:
            logs = self._tables[kind.name].logs
            return {
                its_id: [_copy(entry.value) for entry in logs[its_id][after:end]]
                for its_id in ids
                if its_id in logs
            }

    def count(self, kind: Kind, where: Filter) -> int:
        with self._lock:
            return sum(1 for _ in self._meeting(kind, where))

    def delete(self, kind: Kind, where: Filter) -> int:
        with self._lock:
            table = self._tables[kind.name]
            leaving = list(self._meeting(kind, where))
            for document in leaving:
                self._forget_keys(kind, document)
                del table.documents[document["id"]], table.logs[document["id"]]
            return len(leaving)

    def ping(self) -> int:
        return time.time_ns() // 1_000_000

    def close(self) -> None:
        pass


def _present(document: Mapping[str, Any]) -> Document:
    return {name: value for name, value in document.items() if value is not None}


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _unique_keys(kind: Kind, document: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return the values of each unique group that is whole, with the group's name."""
    return [
        (group, *(document[name] for name in group))
        for group in kind.unique
        if all(document.get(name) is not None for name in group)
    ]


def _append(log: list[Entry], entries: Iterable[Entry]) -> int:
    """Add entries whose keys the log does not have; return how many."""
    keys = {entry.key for entry in log}
    before = len(log)
    for entry in entries:
        if entry.key is None or entry.key not in keys:
            log.append(Entry(entry.key, _copy(entry.value)))
            keys.add(entry.key)
    return len(log) - before
