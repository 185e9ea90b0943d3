"""The JSON of imports: what came of a file, and the rows of tables."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, FiniteFloat, ValidationInfo

from embedding_studio.clickstream import event_kind
from embedding_studio.errors import InvalidInput
from embedding_studio.wire.clickstream import Posted, PostedId, Query, Text, to_seconds
from embedding_studio.wire.fields import check_meta
from embedding_studio.wire.labels import check_words

MAX_REFUSALS = 10_000
MAX_WARNINGS = 100
"""How many of them a report tells."""
MAX_OF_A_ROW = 1000
"""How many texts, labels or messages a row may have."""
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
    PAIRS = "pairs"
    CHAT = "chat"
    QRELS = "qrels"
    LABELS = "labels"


Shortened = Annotated[str, AfterValidator(lambda text: text[:MAX_CHARS])]


class RowNote(BaseModel):
    """What is to be said of a row."""

    row: int = Field(description="of JSON lines the line, of CSV the header is row 1")
    column: Shortened | None = None
    reason: Shortened


class Remark(RowNote):
    """What is to be said of a row, or of all, that is taken."""


class ImportReport(BaseModel):
    """What came of a file. A dry run keeps nothing, and does not look what is known."""

    format: ImportFormat = ImportFormat.SESSIONS
    dry_run: bool = False
    rows: int = Field(0, description="of the file that are not empty")
    sessions: int = Field(0, description="that these rows make and that are right")
    items: int = Field(0, description="that these rows tell of and that are right")
    labels: int = Field(0, description="that these rows tell of and that are right")
    created: int = Field(0, description="sessions, labels, or items of a table, that are new")
    existing: int = Field(
        0, description="that were known: of sessions what came first stays, else what came last"
    )
    new_events: int = 0
    refused: int = Field(0, description="rows that are left out")
    refusals: list[RowNote] = Field([], description=f"of them the first {MAX_REFUSALS}")
    warned: int = Field(0, description="what was taken, but may teach nothing")
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


def _as_list(value: object) -> object:
    """Return one text as a list of it, and none as an empty one."""
    return [value] if isinstance(value, str | int | float) else value


def check_file(name: str) -> str:
    """Return the name of a file below a folder. Raises ValueError for one that leads elsewhere."""
    parts = re.split(r"[/\\]", unquote(name))
    if ".." in parts or not parts[0] or ":" in parts[0]:
        raise ValueError("leads out of the folder: names of files have no .., and no root")
    return name


TableQuery = Annotated[Query, BeforeValidator(as_text), AfterValidator(check_words)]
SaidText = Annotated[TableText, AfterValidator(check_words)]
Grade = Annotated[FiniteFloat, AfterValidator(lambda grade: max(0.0, grade))]
"""What is below 0 is not relevant at all, as 0 is."""


class PairBody(Posted):
    """A query, and a text that is an answer to it, or texts; and such as are none."""

    query: TableQuery
    positive: Annotated[
        list[SaidText], BeforeValidator(_as_list), Field(min_length=1, max_length=MAX_OF_A_ROW)
    ]
    negatives: Annotated[
        Sequence[SaidText], BeforeValidator(_as_list), Field(max_length=MAX_OF_A_ROW)
    ] = ()
    score: Grade | None = None
    item: TableId | None = None


class JudgementBody(Posted):
    """How relevant an item is for a query."""

    query: TableQuery | None = None
    query_id: TableId | None = None
    item: TableId
    grade: Grade
    text: SaidText | None = None


class FileBody(Posted):
    """A file, and the labels it carries."""

    file: Annotated[PostedId, AfterValidator(check_file)]
    labels: Annotated[list[TableQuery], BeforeValidator(_as_list), Field(max_length=MAX_OF_A_ROW)]
    text: SaidText | None = None


class PartBody(BaseModel):
    """A part of a message: a text, or something else."""

    text: Text = ""


class MessageBody(BaseModel):
    """A message of a conversation."""

    role: str
    content: Text | list[PartBody] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return " ".join(part.text for part in self.content or [])


class ChatBody(Posted):
    """A conversation, as OpenAI has them."""

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MAX_OF_A_ROW)]


def columns_in(text: str) -> Mapping[str, str]:
    """Return columns by fields, as they are written: query=...,item=... Raises InvalidInput."""
    columns = {}
    for part in filter(None, text.split(",")):
        name, is_pair, column = part.partition("=")
        if not is_pair:
            raise InvalidInput(f"columns: {part!r} is no field=column")
        columns[name.strip()] = column.strip()
    return columns
