"""The JSON of imports: what came of a file, and the rows of tables."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, FiniteFloat, ValidationInfo

from embedding_studio.clickstream import event_kind
from embedding_studio.errors import InvalidInput
from embedding_studio.wire.clickstream import Posted, PostedId, Query, Text, to_seconds
from embedding_studio.wire.fields import check_meta

MAX_REFUSALS = 10_000
MAX_WARNINGS = 100
"""How many of them a report tells."""
MAX_CHARS = 500
"""How long each is at most."""
SHOWN = frozenset(
    map(
        event_kind,
        ("impression", "show", "shown", "view item list", "view search results", "search", "none"),
    )
)
"""Kinds of events that say no more than that an item was shown."""
_MILLISECONDS = 1e11  # as seconds, 1973 as milliseconds: in seconds it is the year 5138
_TOO_LATE = 1e30


class ImportFormat(StrEnum):
    SESSIONS = "sessions"
    IMPRESSIONS = "impressions"
    ITEMS = "items"


Shortened = Annotated[str, AfterValidator(lambda text: text[:MAX_CHARS])]


class RowNote(BaseModel):
    """What is to be said of a row."""

    row: int = Field(description="of JSON lines the line, of CSV the header is row 1")
    column: Shortened | None = None
    reason: Shortened


class ImportReport(BaseModel):
    """What came of a file. A dry run keeps nothing, and does not look what is known."""

    format: ImportFormat = ImportFormat.SESSIONS
    dry_run: bool = False
    rows: int = Field(0, description="of the file that are not empty")
    sessions: int = Field(0, description="that these rows make and that are right")
    items: int = Field(0, description="that these rows tell of and that are right")
    created: int = Field(0, description="sessions, or items, that are new")
    existing: int = Field(
        0, description="that were known: of sessions what came first stays, of items what came last"
    )
    new_events: int = 0
    refused: int = Field(0, description="rows that are left out")
    refusals: list[RowNote] = Field([], description=f"of them the first {MAX_REFUSALS}")
    warned: int = Field(0, description="sessions that were taken, but may teach nothing")
    warnings: list[RowNote] = Field([], description=f"of them the first {MAX_WARNINGS}")


def as_text(value: object) -> object:
    """Return a number as it is written: in tables, ids and queries are numbers here and there."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_flag(value: object) -> object:
    """Return a count of clicks as whether there was one."""
    try:
        return value if isinstance(value, bool) else float(value) > 0  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return value


def _as_seconds(value: object) -> object:
    """Return Unix seconds, milliseconds or microseconds, or an ISO 8601 time, as seconds."""
    if isinstance(value, str) and value.endswith(" UTC"):  # as BigQuery writes it
        value = value.removesuffix(" UTC") + "Z"
    seconds = to_seconds(value)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return seconds
    while _MILLISECONDS <= abs(seconds) < _TOO_LATE:
        seconds /= 1000
    return seconds


def _check_text(text: str, info: ValidationInfo) -> str:
    if info.context is not None:
        check_meta({"text": text}, info.context)
    return text


TableId = Annotated[PostedId, BeforeValidator(as_text)]
TableText = Annotated[Text, BeforeValidator(as_text), AfterValidator(_check_text)]


class HappenedBody(Posted):
    """A row of a table of events: what happened to an item that a search had shown."""

    item: TableId
    position: FiniteFloat | None = None
    score: FiniteFloat | None = None
    clicked: Annotated[bool | None, BeforeValidator(_as_flag)] = None
    event: PostedId | None = None
    session: TableId | None
    time: Annotated[
        Annotated[float, Field(allow_inf_nan=False)] | None, BeforeValidator(_as_seconds)
    ] = None
    user: TableId | None = None
    text: TableText | None = None

    def result(self) -> dict[str, Any]:
        """Return it as a session shows it."""
        meta = {"text": self.text} if self.text else None
        return {"object_id": self.item, "rank": self.score, "meta": meta}

    @property
    def event_type(self) -> str | None:
        """What happened to the item, None where it was only shown."""
        if self.clicked is False:
            return None
        if self.event is not None and event_kind(self.event) not in SHOWN:
            return self.event
        return "click" if self.clicked else None


class ImpressionBody(HappenedBody):
    """A row of a table of impressions: an item that was shown for a query, or what happened to
    it."""

    query: Annotated[Query, BeforeValidator(as_text)]
    session: TableId | None = None


def columns_in(text: str) -> Mapping[str, str]:
    """Return columns by fields, as they are written: query=...,item=... Raises InvalidInput."""
    columns = {}
    for part in filter(None, text.split(",")):
        name, is_pair, column = part.partition("=")
        if not is_pair:
            raise InvalidInput(f"columns: {part!r} is no field=column")
        columns[name.strip()] = column.strip()
    return columns
