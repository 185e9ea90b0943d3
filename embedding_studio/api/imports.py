"""The route for files, which are read while they come."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Annotated

import anyio
import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from embedding_studio.api.clickstream import accepted_instant, keep, session_of
from embedding_studio.api.context import Context, IngestContext
from embedding_studio.api.errors import problems
from embedding_studio.api.requests import judged_one, reason_of
from embedding_studio.api.routing import Route
from embedding_studio.clickstream import Session
from embedding_studio.errors import (
    EmbeddingStudioError,
    InvalidInput,
    InvalidTime,
    NotFound,
    TooManyRequests,
    Unauthorized,
)
from embedding_studio.imports.columns import values_of
from embedding_studio.imports.contents import Told
from embedding_studio.imports.formats import LABELLED, Made, found_in
from embedding_studio.imports.impressions import Found, Happened
from embedding_studio.imports.readers import Row, read_rows
from embedding_studio.imports.stream import Read
from embedding_studio.items import PutStatus
from embedding_studio.loaders.places import Reader
from embedding_studio.settings import Settings
from embedding_studio.store.usage import json_size
from embedding_studio.wire.clickstream import EventBody, PostStatus, SessionBody
from embedding_studio.wire.fields import Plain
from embedding_studio.wire.imports import (
    MAX_REFUSALS,
    MAX_WARNINGS,
    ImportFormat,
    ImportReport,
    Remark,
    RowNote,
    columns_in,
)
from embedding_studio.wire.labels import LabelsId
from embedding_studio.wire.quick import QuickSession, quick_session

router = APIRouter(prefix="/imports", tags=["imports"], route_class=Route)

AT_ONCE = 8
OF_A_PROJECT = 2
GROUP_ROWS = 500
GROUP_BYTES = 4 * 1024 * 1024
"""When what was read is kept: whichever comes first."""
BODY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


ImportId = Annotated[
    str,
    Query(min_length=1, max_length=64, description="names what has no id of its own"),
    Plain,
]


class Imports:
    """The files that are being read, each by a thread of its own, which waits for its client."""

    def __init__(self) -> None:
        self._under_way: list[_Import] = []

    @contextmanager
    def with_one(self, one: "_Import") -> Iterator[None]:
        """Hold a place. Raises a 429 where there is none."""
        of_project = sum(other.project == one.project for other in self._under_way)
        if of_project >= OF_A_PROJECT or len(self._under_way) >= AT_ONCE:
            raise HTTPException(
                429,
                f"{of_project} imports of this project are under way, and "
                f"{len(self._under_way)} of all: {OF_A_PROJECT} and {AT_ONCE} are the most",
                {"Retry-After": "5"},
            )
        self._under_way.append(one)
        try:
            yield
        finally:
            self._under_way.remove(one)

    def get(self, project: str, import_id: str) -> "_Import":
        """Return the one that began last under an id. Raises NotFound where none is under way."""
        for one in reversed(self._under_way):
            if (one.project, one.import_id) == (project, import_id):
                return one
        raise NotFound(f"no import {import_id!r} is under way: once it has ended, its answer tells")


@router.post(
    "",
    summary="Import a file",
    responses=problems(400, 422),
    openapi_extra={"requestBody": {**BODY, "required": True}},
)
async def import_file(
    request: Request,
    context: IngestContext,
    import_id: ImportId,
    wanted: Annotated[
        ImportFormat | None, Query(alias="format", description="absent: recognised by the rows")
    ] = None,
    columns: Annotated[str, Query(description="of a table: query=...,item=...")] = "",
    dry_run: Annotated[bool, Query(description="judge all, keep nothing")] = False,
    url: Annotated[
        str | None,
        Query(
            max_length=2048,
            description="where the file is, in place of a body: http(s), or "
            "below one of the roots that the operator allows",
        ),
        Plain,
    ] = None,
    labels_id: Annotated[
        LabelsId | None, Query(description="the set that labels join; pairs, chat, qrels, labels")
    ] = None,
    files: Annotated[
        str | None,
        Query(max_length=2048, description="the folder or bucket that labelled files are in"),
        Plain,
    ] = None,
) -> ImportReport:
    """The body is a file of sessions, impressions, items or labels: JSON lines, JSON, YAML, CSV or
    parquet, also in gzip or zstd. Sessions of any age are kept while it comes, so an import that
    breaks off is repeated: the same file with the same import_id adds nothing twice. A file at a
    url is read in the same way."""
    given = columns_in(columns)
    if url is not None and await anext(request.stream(), b"") != b"":
        raise InvalidInput("url and a body are both given: send one of them")
    source = nullcontext(_Body(request).read) if url is None else _read_from(url, context.settings)
    one = _Import(context, import_id, dry_run, labels_id)
    work = partial(one.read, source, wanted, given, files)
    with request.app.state.imports.with_one(one):
        try:
            # a thread beside those of other requests: it waits for its client
            return await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))
        except ClientDisconnect:
            raise HTTPException(400, "the client is gone") from None


@router.get("", summary="Follow an import", responses=problems(404, 422))
async def get_import(import_id: ImportId, request: Request, context: IngestContext) -> ImportReport:
    """What came so far of the rows of one that is under way. What is said of single rows is in the
    answer to it alone."""
    one: _Import = request.app.state.imports.get(context.store.project, import_id)
    return one.report.model_copy(update={"refusals": [], "warnings": []})


class _Body:
    """A request's body, read by a thread while it comes."""

    def __init__(self, request: Request) -> None:
        self._chunks = request.stream()
        self._left = b""

    def read(self, size: int) -> bytes:
        if not self._left:
            self._left = anyio.from_thread.run(self._next)
        part, self._left = self._left[:size], self._left[size:]
        return part

    async def _next(self) -> bytes:
        return await anext(self._chunks, b"")


@contextmanager
def _read_from(url: str, settings: Settings) -> Iterator[Read]:
    """Yield what reads the file at a URL. Raises InvalidInput, as the reading does, where it cannot
    be read."""
    with Reader(settings, settings.allow_private_addresses) as reader, ExitStack() as stack:
        with _as_invalid():
            file = stack.enter_context(reader.opened(url))

        def read(size: int) -> bytes:
            with _as_invalid():
                return file.read(size)

        yield read


@contextmanager
def _as_invalid() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # file systems and their drivers raise what they like
        kind = "" if isinstance(error, EmbeddingStudioError) else f"{type(error).__name__}: "
        raise InvalidInput(f"url: {kind}{str(error)[:500]}") from error


class _Import:
    """One file on its way into the store."""

    def __init__(
        self, context: Context, import_id: str, dry_run: bool, labels_id: str | None
    ) -> None:
        self._context = context
        self.project = context.store.project
        self.import_id = import_id
        self._labels_id = labels_id
        self._to_instant = accepted_instant(context, context.clock(), is_history=True)
        #: right sessions that are not kept yet, with their first rows and how many these are
        self._sessions: list[tuple[int, int, Session]] = []
        #: what rows tell of items, and events of sessions that are kept already
        self._told: list[Told] = []
        self._happened: list[Happened] = []
        self._bytes = 0
        self.report = ImportReport(dry_run=dry_run)

    def read(
        self,
        source: AbstractContextManager[Read],
        wanted: ImportFormat | None,
        columns: Mapping[str, str],
        files: str | None,
    ) -> ImportReport:
        """Read a file to its end. Raises InvalidInput, and what the store does, where that cannot
        be; what came before is kept, but no session of which rows may be missing."""
        settings = self._context.settings
        try:
            with source as read:
                rows = self._counted(read_rows(read, settings))
                self.report.format, found = found_in(
                    rows, self.import_id, settings, wanted, columns, files
                )
                self._check_labels_id(self.report.format)
                for one in found:
                    self._take(one)
            self._keep()
        except (InvalidInput, TooManyRequests) as error:
            if isinstance(error, InvalidInput):
                self._keep()
            raise type(error)(f"{error}. {self._so_far()}") from None
        return self.report

    def _check_labels_id(self, found: ImportFormat) -> None:
        if found in LABELLED and self._labels_id is None:
            raise InvalidInput(f"{found} make labels: name the set that they join in labels_id")
        if found not in LABELLED and self._labels_id is not None:
            raise InvalidInput(f"{found} make no labels: leave labels_id out")

    def _counted(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self.report.rows += 1
            yield row

    def _so_far(self) -> str:
        """Say how far it came, for whoever has to repeat it."""
        what = "labels" if self._labels_id else "items" if self.report.items else "sessions"
        return (
            f"Of {self.report.rows} rows before, {self.report.created} {what} are new, "
            f"{self.report.existing} were known and {self.report.refused} rows are refused; the "
            "import may be repeated with the same import_id"
        )

    def _take(self, made: Made) -> None:
        match made:
            case Remark():
                self._warn(made)
            case RowNote():
                self._refuse(made)
            case Told():
                self._told.append(made)
                self._bytes += sum(map(json_size, (*made.items, *made.labels)))
            case Happened():
                self._happened.append(made)
            case Found():
                session = self._session_of(made)
                if isinstance(session, RowNote):
                    self._refuse(session, made.rows)
                    return
                self._sessions.append((made.row, made.rows, session))
                self._bytes += json_size(session)
        waiting = len(self._sessions) + len(self._told) + len(self._happened)
        if waiting >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._keep()

    def _session_of(self, found: Found) -> Session | RowNote:
        """Judge what rows make as if it was posted."""
        read: SessionBody | QuickSession | InvalidInput | None = None
        if isinstance(found.posted, bytes):
            read = quick_session(found.posted, self._context.settings)
        if read is None:
            try:
                posted = dict(values_of(Row(found.row, found.posted)))
            except ValueError as error:
                return RowNote(row=found.row, reason=str(error))
            if posted.get("session_id") is None:
                posted["session_id"] = f"{self.import_id}-{found.row}"
            judged = judged_one(SessionBody, posted, self._context)
            if isinstance(judged, ValidationError):
                column = ".".join(map(str, judged.errors()[0]["loc"])) or None
                reason = reason_of(posted, judged, SessionBody)
                return RowNote(row=found.row, column=column, reason=reason)
            read = judged
        session = read if isinstance(read, InvalidInput) else session_of(read, self._to_instant)
        if isinstance(session, InvalidInput):
            column = "created_at" if isinstance(session, InvalidTime) else None
            return RowNote(row=found.row, column=column, reason=str(session))
        return session

    def _refuse(self, note: RowNote, rows: int = 1) -> None:
        self.report.refused += rows
        if len(self.report.refusals) < MAX_REFUSALS:
            self.report.refusals.append(note)

    async def _may_go_on(self) -> bool:
        return await self._context.still_allowed()

    def _keep(self) -> None:
        """Keep what is right so far."""
        sessions, self._sessions = self._sessions, []
        told, self._told = self._told, []
        happened, self._happened = self._happened, []
        self._bytes = 0
        self.report.sessions += len(sessions)
        self.report.items += sum(len(one.items) for one in told)
        self.report.labels += sum(len(one.labels) for one in told)
        if self.report.dry_run or not (sessions or told or happened):
            return
        if not anyio.from_thread.run(self._may_go_on):
            raise Unauthorized("the API key has ended meanwhile")
        if sessions:
            self._keep_sessions(sessions)
        if told:
            self._keep_told(told)
        for one in happened:
            self._add_event(one)

    def _keep_sessions(self, group: Sequence[tuple[int, int, Session]]) -> None:
        outcomes = keep(self._context, [one for _, _, one in group], self._context.clock())
        for (row, rows, _), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, InvalidInput):
                self.report.sessions -= 1
                self._refuse(RowNote(row=row, reason=str(outcome)), rows)
                continue
            self.report.created += outcome.status is PostStatus.CREATED
            self.report.existing += outcome.status is PostStatus.EXISTING
            self.report.new_events += outcome.new_events
            if outcome.warnings:
                self._warn(RowNote(row=row, reason="; ".join(outcome.warnings)))

    def _warn(self, note: RowNote) -> None:
        self.report.warned += 1
        if len(self.report.warnings) < MAX_WARNINGS:
            self.report.warnings.append(note)

    def _keep_told(self, group: Sequence[Told]) -> None:
        items = {item.object_id: item for one in group for item in one.items}
        answers = self._context.store.items.put([*items.values()], self._context.most)
        wrong = {
            its_id: answer
            for its_id, answer in zip(items, answers, strict=True)
            if isinstance(answer, InvalidInput)
        }
        right = []
        for one in group:
            errors = [wrong[item.object_id] for item in one.items if item.object_id in wrong]
            if errors:
                self._refuse_told(one, errors[0])
            else:
                right.append(one)
        if self._labels_id is not None:
            self._keep_labels(self._labels_id, right)
            return
        for answer in answers:
            self.report.created += answer is PutStatus.CREATED
            self.report.existing += answer in (PutStatus.UPDATED, PutStatus.UNCHANGED)

    def _keep_labels(self, labels_id: str, group: Sequence[Told]) -> None:
        labels = [label for one in group for label in one.labels]
        if not labels:
            return
        try:
            put = self._context.store.labels.put(
                labels_id, labels, self._context.clock(), most=self._context.most
            )
        except InvalidInput as error:  # of one of them, which keeps all of them out
            if len(group) == 1:
                self._refuse_told(group[0], error)
            for one in group if len(group) > 1 else ():
                self._keep_labels(labels_id, [one])
            return
        self.report.created += put.created
        self.report.existing += put.updated + put.unchanged

    def _refuse_told(self, told: Told, error: InvalidInput) -> None:
        self.report.items -= len(told.items)
        self.report.labels -= len(told.labels)
        self._refuse(RowNote(row=told.row, reason=str(error)))

    def _add_event(self, happened: Happened) -> None:
        """Add an event to a session that is kept already. Without one there is nothing to add to:
        what waits for its session waits in vain here, where files are read to their end."""
        body = EventBody.model_construct(**happened.posted)
        try:
            event = body.to_event(happened.session_id, self._to_instant)
            answer = self._context.store.clickstream.append_events(
                happened.session_id, (event,), self._context.most
            )
        except NotFound:
            reason = (
                f"no session {happened.session_id!r} is known: import its query before, or in the "
                "same file"
            )
            self._refuse(RowNote(row=happened.row, reason=reason))
        except InvalidInput as error:
            column = "created_at" if isinstance(error, InvalidTime) else None
            self._refuse(RowNote(row=happened.row, column=column, reason=str(error)))
        else:
            self.report.new_events += answer.new_events
