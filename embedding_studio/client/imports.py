"""Calls for files."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, TypedDict, Unpack

import httpx

from embedding_studio.client.connection import Connection, checked
from embedding_studio.imports.parquet import as_json
from embedding_studio.imports.readers import Row
from embedding_studio.wire.imports import MAX_REFUSALS, ImportReport, RowNote

_CHUNK_BYTES = 256 * 1024
_ATTEMPTS = 5
_ANSWER_SECONDS = 3600.0
"""How long an answer may take once a file is sent: parquet is read only then."""


class ImportOptions(TypedDict, total=False):
    """How a file is read."""

    #: recognised when absent
    format: str | None
    #: a table's columns by their fields: query, item, ...
    columns: Mapping[str, str] | None
    #: whether all is judged and nothing kept
    dry_run: bool
    #: the set that labels join
    labels_id: str | None
    #: the folder or bucket that labelled files are in
    files: str | None


class ImportCalls(Connection):
    """Files of sessions, impressions, items and labels."""

    def import_file(
        self,
        path: Path | str,
        *,
        import_id: str | None = None,
        on_sent: Callable[[int], object] | None = None,
        **options: Unpack[ImportOptions],
    ) -> ImportReport:
        """Send a file from the disk and return what came of its rows.

        import_id: by default made of the file's content, so that the same file adds nothing twice.
        on_sent: is told how many bytes are sent, from 0 again when the call is repeated."""
        path = Path(path)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
        }
        params = _params(import_id or import_id_of(path), options)

        def content() -> Iterator[bytes]:
            return _chunks(path, on_sent or (lambda sent: None))

        return self._import(params, content, headers)

    def import_url(
        self, url: str, *, import_id: str | None = None, **options: Unpack[ImportOptions]
    ) -> ImportReport:
        """Have the API read the file at a URL, or at a path that it allows, as `import_file` does.

        import_id: by default made of the URL: name another where there is another file by now."""
        params = _params(import_id or import_id_of_text(url), options)
        return self._import({**params, "url": url})

    def get_import(self, import_id: str) -> ImportReport:
        """Return what came so far of an import that is under way. Raises NotFound."""
        return self._get(ImportReport, "/imports", import_id=import_id)

    def import_rows(
        self,
        rows: Callable[[], Iterable[Mapping[str, Any] | Row]],
        import_id: str,
        *,
        on_sent: Callable[[int, int], object] | None = None,
        **options: Unpack[ImportOptions],
    ) -> ImportReport:
        """Send rows while they come, as `import_file` does a file's.

        rows: returns them, as JSON has them, numbered from 1, or with numbers and faults of their
        own; from the first again when the call is repeated. import_id: names what has no id of its
        own. on_sent: is told how many rows and bytes are sent."""
        refusals: list[RowNote] = []

        def content() -> Iterator[bytes]:
            refusals.clear()
            return _lines(rows(), refusals, on_sent or (lambda rows, sent: None))

        params = _params(import_id, options)
        report = self._import(params, content, {"Content-Type": "application/octet-stream"})
        report.rows += len(refusals)
        report.refused += len(refusals)
        told = sorted([*report.refusals, *refusals], key=lambda note: note.row)
        report.refusals = told[:MAX_REFUSALS]
        return report

    def _import(
        self,
        params: Mapping[str, Any],
        content: Callable[[], Iterator[bytes]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ImportReport:
        timeout = httpx.Timeout(**{**self._http.timeout.as_dict(), "read": _ANSWER_SECONDS})

        def send() -> httpx.Response:
            return self._http.post(
                "/imports",
                params=params,
                content=content() if content else None,
                headers=headers,
                timeout=timeout,
            )

        response = self._retrying(lambda: checked(send()), attempts=_ATTEMPTS)
        return self._read(ImportReport, response)


def _params(import_id: str, options: ImportOptions) -> dict[str, Any]:
    columns = (options.get("columns") or {}).items()
    named = ",".join(f"{name}={column}" for name, column in columns)
    given = {**options, "columns": named, "import_id": import_id}
    return {name: value for name, value in given.items() if value}


def _lines(
    rows: Iterable[Mapping[str, Any] | Row],
    refusals: list[RowNote],
    on_sent: Callable[[int, int], object],
) -> Iterator[bytes]:
    """Yield rows as JSON lines, of which each has its number; what is none joins the refusals."""
    part, line, count, sent = bytearray(), 0, 0, 0
    for number, given in enumerate(rows, 1):
        row = given if isinstance(given, Row) else Row(number, given)
        if row.fault is not None:
            refusals.append(RowNote(row=row.number, reason=row.fault))
            continue
        part += b"\n" * (row.number - 1 - line)
        if isinstance(row.content, bytes):
            part += row.content
        else:
            part += json.dumps(as_json(row.content)).encode()
        part += b"\n"
        line, count = row.number, count + 1
        if len(part) >= _CHUNK_BYTES:
            sent += len(part)
            yield bytes(part)
            on_sent(count, sent)
            part.clear()
    yield bytes(part)
    on_sent(count, sent + len(part))


def import_id_of(path: Path) -> str:
    """Return the id of a file's content."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:32]


def import_id_of_text(text: str) -> str:
    """Return the id of what is elsewhere, by what it is named."""
    return sha256(text.encode()).hexdigest()[:32]


def _chunks(path: Path, on_sent: Callable[[int], object]) -> Iterator[bytes]:
    sent = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            on_sent(sent)
