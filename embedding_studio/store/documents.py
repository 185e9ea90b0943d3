"""The narrow waist of the store: documents of declared kinds, in a handful of calls.

A database implements `Documents`; every rule of the domain stands once on top of it, in a module
per noun. `tests/contracts/test_documents.py` holds each sentence below.

A document is JSON with an `id`, a text. A field that is None is absent, in documents, changes and
filters alike. Times are whole milliseconds since 1970, so that they sort. Whatever is given or
returned may be kept and changed by its owner.

Every call may raise StoreUnavailable when the database does not answer, and may then be repeated;
what an interrupted `insert` or `delete` did before stays done. Documents and values that a database
cannot hold raise InvalidInput. Calls are safe from several threads and processes at once.
"""

import random
import secrets
import time
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any, NamedTuple, TypeVar

from embedding_studio.errors import InvalidInput

Document = dict[str, Any]
Scalar = str | int | float | bool
Result = TypeVar("Result")

PAGE = 128
"""How many documents are read at once, where it is not known how many are needed."""


@dataclass(frozen=True)
class Kind:
    """A kind of documents: where they lie, and what is looked up quickly."""

    name: str
    #: groups of fields of which no two documents have the same values, where all are present
    unique: tuple[tuple[str, ...], ...] = ()
    #: fields by which documents are found (equal first) and sorted (last)
    indexes: tuple[tuple[str, ...], ...] = ()
    #: the same, for those documents alone that have all of these fields
    sparse: tuple[tuple[str, ...], ...] = ()
    #: what else of many documents is compared, or read without the rest of them
    fields: tuple[str, ...] = ()

    @cached_property
    def looked_up(self) -> frozenset[str]:
        """The fields by which documents are found, and those that are compared."""
        return frozenset(chain(("id",), self.fields, *self.unique, *self.indexes, *self.sparse))


class Op(NamedTuple):
    """A condition on one field. The language has these five words, and `equal` may stand for
    itself: {"status": "pending"} is {"status": equal("pending")}."""

    word: str
    value: Any = None


def equal(value: Scalar) -> Op:
    """The field has this value."""
    return Op("equal", value)


absent = Op("absent")
"""The document has no such field."""


def among(values: Iterable[Scalar]) -> Op:
    """The field has one of these values."""
    return Op("among", tuple(values))


def above(value: Scalar) -> Op:
    """The field is larger than this value; what is absent is not."""
    return Op("above", value)


def up_to(value: Scalar) -> Op:
    """The field is this value or smaller; what is absent is not."""
    return Op("up to", value)


Filter = Mapping[str, "Scalar | Op | None"]
"""Conditions by field; all of them hold. None is `absent`."""


def op_of(condition: "Scalar | Op | None") -> Op:
    """Return a condition of a filter with its word."""
    if condition is None:
        return absent
    return condition if isinstance(condition, Op) else equal(condition)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a document's log."""

    #: of two entries with the same key the log takes the first; None: it takes every one
    key: str | None
    value: Any


class Changed(NamedTuple):
    """What a change came to."""

    #: the whole document, as it is now
    document: Document
    #: how many entries its log took
    appended: int


_random = random.Random(secrets.randbits(128))
# base64 whose digits sort as what they stand for
_SORTED = bytes.maketrans(
    f"{ascii_uppercase}{ascii_lowercase}{digits}+/".encode(),
    f"-{digits}{ascii_uppercase}_{ascii_lowercase}".encode(),
)


def new_id() -> str:
    """Return an id of 16 letters, digits, - and _; of two made one after the other the first sorts
    first."""
    return _id_of(time.time_ns(), _random.getrandbits(32))


def _id_of(nanoseconds: int, number: int) -> str:
    """Return an id that sorts by what it is made of."""
    content = (nanoseconds << 32 | number).to_bytes(12)
    return b64encode(content).translate(_SORTED).decode()


def first_id_at(moment: datetime) -> str:
    """Return what all ids are larger than that `new_id` gives from a moment on, and no other."""
    return _id_of(round(moment.timestamp() * 1e9), 0)[:10]


class Documents(ABC):
    """A database as the store sees it."""

    @abstractmethod
    def insert(self, kind: Kind, documents: Sequence[Document]) -> list[bool | InvalidInput]:
        """Insert documents. One answer for each, in order: True when it is in; False when its id or
        a unique group is there already; InvalidInput, naming no document, when the database cannot
        hold it. A refused one keeps no other out.

        A document may bring the first entries of its log as `log`, a list of Entry.
        """

    @abstractmethod
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
        """Return the documents that meet a filter, without their logs, in one query.

        sort: fields, all in one direction; absent comes first. fields: the only ones to read.
        """

    @abstractmethod
    def change(
        self,
        kind: Kind,
        where: Filter,
        *,
        set: Mapping[str, Any] | None = None,  # noqa: A002 - the word for it
        add: Mapping[str, int] | None = None,
        append: Sequence[Entry] = (),
    ) -> Changed | None:
        """Compare, set and append in one atomic step: change one document that meets the filter, or
        return None, also where another document has the values of a unique group that it would get.
        The filter names it by its id or a whole unique group.

        set: fields to replace, None to remove. add: to numbers, absent counts as 0; a dotted name
        is a field of an object. append: entries to its log; those whose key it has are left out.
        """

    @abstractmethod
    def change_all(self, kind: Kind, where: Filter, set: Mapping[str, Any]) -> int:  # noqa: A002
        """Set fields of every document that meets a filter; return how many there are. Each is
        changed atomically, all of them are not."""

    @abstractmethod
    def logs(
        self, kind: Kind, ids: Collection[str], *, after: int = 0, limit: int | None = None
    ) -> dict[str, list[Any]]:
        """Return the values in the logs of documents, by their ids, in one query: of each log up to
        `limit`, without the first `after`. Ids that are unknown are not there."""

    @abstractmethod
    def count(self, kind: Kind, where: Filter) -> int:
        """Return how many documents meet a filter."""

    @abstractmethod
    def delete(self, kind: Kind, where: Filter) -> int:
        """Delete the documents that meet a filter, with their logs; return how many."""

    def together(self, work: Callable[[], Result]) -> Result:
        """Return what work returns, whose calls share one commit where the database can do that.

        Where it can, and work raises, nothing that it did is kept; and it may be done again, after
        nothing was kept, so it changes nothing else.
        """
        return work()

    # what is asked so often that it has a word, made of the calls above

    def insert_one(self, kind: Kind, document: Document) -> bool:
        """Insert a document; False when it is there already. Raises InvalidInput."""
        [answer] = self.insert(kind, [document])
        if isinstance(answer, InvalidInput):
            raise answer
        return answer

    def find_one(self, kind: Kind, where: Filter, *, sort: Sequence[str] = ()) -> Document | None:
        """Return the first document that meets a filter, None if none does."""
        return next(iter(self.find(kind, where, sort=sort, limit=1)), None)

    def each(self, kind: Kind, where: Filter, *, sort: Sequence[str]) -> Iterator[Document]:
        """Give the documents that meet a filter one by one, read by pages that grow."""
        skip, limit = 0, 1
        while page := self.find(kind, where, sort=sort, skip=skip, limit=limit):
            yield from page
            skip, limit = skip + limit, min(2 * limit, PAGE)

    @abstractmethod
    def ping(self) -> int:
        """Write a little, and return the time by the database's clock. Raises StoreUnavailable if
        the database takes no writes."""

    @abstractmethod
    def close(self) -> None:
        """Release connections; it is of no use afterwards."""
