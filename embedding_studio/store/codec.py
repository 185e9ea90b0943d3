"""Dataclasses as documents, and back: JSON in which times are whole milliseconds since 1970."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cache
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter

from embedding_studio.store.documents import Document

Value = TypeVar("Value")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
PLAIN = frozenset({str, int, float, bool, type(None)})


class Codec(Generic[Value]):
    """The form in which a dataclass is kept as a document."""

    def __init__(self, kind: type[Value]) -> None:
        # a tuple of one, for pydantic takes no settings for a standard dataclass itself
        one: Any = tuple[kind]  # type: ignore[valid-type]
        settings = ConfigDict(val_temporal_unit="milliseconds")
        self._adapter: TypeAdapter[tuple[Value]] = TypeAdapter(one, config=settings)

    def encode(self, value: Value) -> Document:
        """Return the document of a value; times are cut to the millisecond."""
        document: Document = to_json(value)
        return document

    def decode(self, document: Mapping[str, Any]) -> Value:
        """Return the value of a document. What the document has besides is left out."""
        return self._adapter.validate_python((document,))[0]


def to_json(value: Any) -> Any:
    """Return a value, and what it is made of, as it is kept in a document."""
    kind: Any = type(value)
    if kind in PLAIN:  # first, for nearly all are: this is half of what it takes to keep a session
        return value
    if issubclass(kind, Enum):
        return value.value
    if kind is datetime:
        return milliseconds(value)
    if kind is dict or issubclass(kind, Mapping):
        return {name: to_json(part) for name, part in value.items()}
    if issubclass(kind, list | tuple):
        return [to_json(part) for part in value]
    return {name: to_json(getattr(value, name)) for name in _names_of(kind)}


@cache
def _names_of(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def milliseconds(moment: datetime) -> int:
    """Return the whole milliseconds from 1970 to a moment."""
    return (moment - EPOCH) // MILLISECOND


def moment_of(milliseconds: int) -> datetime:
    """Return the moment so many milliseconds after 1970, in UTC."""
    return EPOCH + milliseconds * MILLISECOND
