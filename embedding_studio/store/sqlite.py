"""Documents in one SQLite file, shared by the threads and processes of one machine.

Each kind is a table of JSON texts, with indexes on what the texts say, and a table of the entries
of their logs.
"""

import json
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic_core import PydanticSerializationError, from_json, to_json

from embedding_studio.errors import InvalidInput
from embedding_studio.store.documents import (
    Changed,
    Document,
    Documents,
    Entry,
    Filter,
    Kind,
    Result,
    among,
    op_of,
)
from embedding_studio.store.sqlite_file import SqliteFile

MOST = 2**63 - 1

CONDITIONS = {
    "equal": "{} = ?",
    "absent": "{} IS NULL",
    "among": "{} IN (SELECT value FROM json_each(?))",
    "above": "{} > ?",
    "up to": "{} <= ?",
}
# SQLite's JSON has no words for these, but numbers that are too large
NOT_FINITE = {"NaN": "9e999", "Infinity": "1e999", "-Infinity": "-1e999"}
NAN = {"9e999": "nan"}
STRING_OR_NOT_FINITE = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')


class SqliteDocuments(Documents):
    """Documents in the file that a URL names, as `SqliteFile` takes it."""

    def __init__(self, url: str, *, is_migrating: bool = False) -> None:
        self.file = SqliteFile(url, is_migrating=is_migrating)
        self._kinds: set[Kind] = set()

    def insert(self, kind: Kind, documents: Sequence[Document]) -> list[bool | InvalidInput]:
        table = self._table(kind)
        rows = [_row_of(kind, document) for document in documents]

        def work(connection: sqlite3.Connection) -> list[bool | InvalidInput]:
            return [
                row if isinstance(row, InvalidInput) else table.insert(connection, row)
                for row in rows
            ]

        return self.file.write(work)

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
        table, names = self._table(kind), None if fields is None else list(fields)
        what = "document"
        if names is not None:  # with a second path it gives a list, however few there are
            paths = ", ".join(_path(name) for name in [*names, "id"])
            what = f"json_extract(document, '$.id', {paths})"
        condition, values = _condition(where)
        query = f"SELECT {what} FROM {table.name} WHERE {condition}"
        if sort:
            direction = " DESC" if descending else ""
            query += " ORDER BY " + ", ".join(f"{_field(name)}{direction}" for name in sort)
        query += " LIMIT ? OFFSET ?"
        rows = self.file.read(query, [*values, -1 if limit is None else limit, skip])
        if names is None:
            return [_load(text) for (text,) in rows]
        return [
            {
                name: value
                for name, value in zip(names, _load(text)[1:-1], strict=True)
                if value is not None
            }
            for (text,) in rows
        ]

    def change(
        self,
        kind: Kind,
        where: Filter,
        *,
        set: Mapping[str, Any] | None = None,  # noqa: A002 - the word for it
        add: Mapping[str, int] | None = None,
        append: Sequence[Entry] = (),
    ) -> Changed | None:
        table = self._table(kind)
        condition, values = _condition(where)
        changes = _checked(kind, set or {})
        entries = [(entry.key, _dump(entry.value)) for entry in append]

        def work(connection: sqlite3.Connection) -> Changed | None:
            found = f"SELECT row, document FROM {table.name} WHERE {condition} LIMIT 1"
            one = connection.execute(found, values).fetchone()
            if one is None:
                return None
            row, document = one[0], _load(one[1])
            _apply(document, _load(changes), add or {})
            try:
                table.replace(connection, row, document)
            except sqlite3.IntegrityError:  # another has these values of a unique group
                return None
            return Changed(document, table.append(connection, row, entries))

        return self.file.write(work)

    def change_all(self, kind: Kind, where: Filter, set: Mapping[str, Any]) -> int:  # noqa: A002
        table = self._table(kind)
        condition, values = _condition(where)
        changed, new = "document", []
        for name, value in _load(_checked(kind, set)).items():
            if value is None:
                changed = f"json_remove({changed}, {_path(name)})"
            else:
                changed = f"json_set({changed}, {_path(name)}, json(?))"
                new.append(_dump(value))
        # a row that would break a unique group is left as it is
        change = f"UPDATE OR IGNORE {table.name} SET document = {changed} WHERE {condition}"
        return self.file.write(
            lambda connection: connection.execute(change, [*new, *values]).rowcount
        )

    def logs(
        self, kind: Kind, ids: Collection[str], *, after: int = 0, limit: int | None = None
    ) -> dict[str, list[Any]]:
        table = self._table(kind)
        condition, values = _condition({"id": among(ids)})
        query = (
            f"SELECT id, value FROM {table.name} AS one LEFT JOIN {table.log} AS entry "
            "ON entry.row = one.row AND number > ? AND number <= ? "
            f"WHERE {condition} ORDER BY one.row, number"
        )
        last = MOST if limit is None else after + limit
        found: dict[str, list[Any]] = {}
        for one, value in self.file.read(query, [after, last, *values]):
            log = found.setdefault(one, [])
            if value is not None:
                log.append(_load(value))
        return found

    def count(self, kind: Kind, where: Filter) -> int:
        table = self._table(kind)
        condition, values = _condition(where)
        query = f"SELECT count(*) FROM {table.name} WHERE {condition}"
        ((count,),) = self.file.read(query, values)
        return int(count)

    def delete(self, kind: Kind, where: Filter) -> int:
        table = self._table(kind)
        condition, values = _condition(where)

        def work(connection: sqlite3.Connection) -> int:
            leaving = f"SELECT row FROM {table.name} WHERE {condition}"
            connection.execute(f"DELETE FROM {table.log} WHERE row IN ({leaving})", values)
            return connection.execute(
                f"DELETE FROM {table.name} WHERE {condition}", values
            ).rowcount

        return self.file.write(work)

    def together(self, work: Callable[[], Result]) -> Result:
        return self.file.together(work)

    def ping(self) -> int:
        self.file.ping()
        return time.time_ns() // 1_000_000  # all who share the file share this machine

    def close(self) -> None:
        self.file.close()

    def _table(self, kind: Kind) -> "_Table":
        """Return the tables of a kind, which are there with all their indexes."""
        table = _Table(kind)
        if kind not in self._kinds:
            present = {name for (name,) in self.file.read("SELECT name FROM sqlite_master", [])}
            missing = [text for name, text in table.definitions() if name not in present]
            if missing:
                self.file.write(lambda connection: [connection.execute(text) for text in missing])
            if not self.file.is_joined:  # else they may be undone
                self._kinds.add(kind)
        return table


class _Row(NamedTuple):
    """A document as its table has it."""

    id: str
    document: str
    #: of its log: keys and values
    entries: list[tuple[str | None, str]]


class _Table:
    """The table of a kind and the one of its logs; a log's entries are numbered from 1."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.name = f'"{kind.name} documents"'
        self.log = f'"{kind.name} log"'

    def definitions(self) -> Iterator[tuple[str, str]]:
        """Give what makes these tables and their indexes, by their names."""
        name = self._kind.name
        yield (
            f"{name} documents",
            f"CREATE TABLE IF NOT EXISTS {self.name} "
            "(row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document TEXT NOT NULL)",
        )
        yield (
            f"{name} log",
            f"CREATE TABLE IF NOT EXISTS {self.log} (row INTEGER NOT NULL, number INTEGER NOT NULL,"
            " key TEXT, value TEXT NOT NULL, PRIMARY KEY (row, number)) WITHOUT ROWID",
        )
        yield (
            f"{name} log keys",
            f'CREATE UNIQUE INDEX IF NOT EXISTS "{name} log keys" ON {self.log} (row, key) '
            "WHERE key IS NOT NULL",
        )
        for word, groups in (("UNIQUE INDEX", self._kind.unique), ("INDEX", self._kind.indexes)):
            for group in groups:
                index = f"{name} {word.lower()}: {', '.join(group)}"
                fields = ", ".join(_field(field) for field in group)
                yield (
                    index,
                    f'CREATE {word} IF NOT EXISTS "{index}" ON {self.name} ({fields})',
                )

    def insert(self, connection: sqlite3.Connection, row: _Row) -> bool:
        inserted = connection.execute(
            f"INSERT INTO {self.name} (id, document) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (row.id, row.document),
        )
        if inserted.rowcount == 0:
            return False
        assert inserted.lastrowid is not None
        self._append(connection, inserted.lastrowid, 0, row.entries)
        return True

    def replace(self, connection: sqlite3.Connection, row: int, document: Document) -> None:
        change = f"UPDATE {self.name} SET document = ? WHERE row = ?"
        connection.execute(change, (_dump(document), row))

    def append(
        self, connection: sqlite3.Connection, row: int, entries: Sequence[tuple[str | None, str]]
    ) -> int:
        if not entries:
            return 0
        query = f"SELECT coalesce(max(number), 0) FROM {self.log} WHERE row = ?"
        ((last,),) = connection.execute(query, (row,)).fetchall()
        return self._append(connection, row, last, entries)

    def _append(
        self,
        connection: sqlite3.Connection,
        row: int,
        last: int,
        entries: Iterable[tuple[str | None, str]],
    ) -> int:
        number = last
        for key, value in entries:
            number += connection.execute(
                f"INSERT INTO {self.log} VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (row, number + 1, key, value),
            ).rowcount
        return number - last


def _row_of(kind: Kind, document: Document) -> _Row | InvalidInput:
    fields = dict(document)
    log = fields.pop("log", [])
    try:
        entries = [(entry.key, _dump(entry.value)) for entry in log]
        for key, _ in entries:
            (key or "").encode()
        present = {name: value for name, value in fields.items() if value is not None}
        return _Row(document["id"], _checked(kind, present), entries)
    except InvalidInput as refusal:
        return refusal
    except UnicodeEncodeError as error:
        return _refusal(error)


def _checked(kind: Kind, fields: Mapping[str, Any]) -> str:
    """Return fields as text. Raises InvalidInput if they cannot be stored, or not be found."""
    for name in kind.looked_up:
        value = fields.get(name)
        if isinstance(value, str) and "\0" in value:
            raise InvalidInput(f"SQLite cannot look up a NUL, as in {name} {value!r}")
        if isinstance(value, int) and not -MOST <= value <= MOST:
            raise InvalidInput(f"SQLite cannot look up a number of over 64 bits, as {name} is")
    return _dump(fields)


def _refusal(error: Exception) -> InvalidInput:
    return InvalidInput(f"SQLite cannot store this: {error}")


def _dump(value: Any) -> str:
    try:
        text = to_json(value).decode()
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise _refusal(error) from error
    if "NaN" in text or "Infinity" in text:
        return STRING_OR_NOT_FINITE.sub(lambda found: NOT_FINITE.get(found[0], found[0]), text)
    return text


def _load(text: str) -> Any:
    if "9e999" not in text:
        try:
            return from_json(text)
        except ValueError:  # nested deeper than it goes
            pass
    return json.loads(text, parse_float=lambda digits: float(NAN.get(digits, digits)))


def _apply(document: Document, changes: Mapping[str, Any], add: Mapping[str, int]) -> None:
    """Set fields of a document, and add to its numbers."""
    for name, value in changes.items():
        if value is None:
            document.pop(name, None)
        else:
            document[name] = value
    for name, number in add.items():
        *path, last = name.split(".")
        parent = document
        for part in path:
            parent = parent.setdefault(part, {})
        parent[last] = parent.get(last, 0) + number


def _condition(where: Filter) -> tuple[str, list[Any]]:
    """Return a filter as an SQL condition, and its values."""
    conditions, values = ["true"], []
    for name, condition in where.items():
        word, value = op_of(condition)
        conditions.append(CONDITIONS[word].format(_field(name)))
        if word == "among":  # what has a NUL is nobody's, but json_each would cut it off there
            value = _dump([one for one in value if not (isinstance(one, str) and "\0" in one)])
        if word != "absent":
            values.append(value)
    return " AND ".join(conditions), values


def _path(name: str) -> str:
    return f"'$.\"{name}\"'"


def _field(name: str) -> str:
    return "id" if name == "id" else f"json_extract(document, {_path(name)})"
