"""Calls for files."""

from collections.abc import Callable, Iterator, Mapping
from hashlib import file_digest, sha256
from pathlib import Path

import httpx

from embedding_studio.client.connection import Connection, checked
from embedding_studio.wire.imports import ImportReport

_CHUNK_BYTES = 256 * 1024
_ATTEMPTS = 5
_ANSWER_SECONDS = 3600.0
"""How long an answer may take once a file is sent: parquet is read only then."""


class ImportCalls(Connection):
    """Files of sessions, impressions, items and labels."""

    def import_file(
        self,
        path: Path | str,
        *,
        format: str | None = None,  # noqa: A002 - as the API has it
        columns: Mapping[str, str] | None = None,
        import_id: str | None = None,
        dry_run: bool = False,
        labels_id: str | None = None,
        files: str | None = None,
        on_sent: Callable[[int], object] | None = None,
    ) -> ImportReport:
        """Send a file from the disk and return what came of its rows.

        format: recognised when absent. columns: a table's columns by their fields: query, item, ...
        import_id: by default made of the file's content, so that the same file adds nothing twice.
        labels_id: the set that labels join. files: the folder or bucket that labelled files are in.
        on_sent: is told how many bytes are sent, from 0 again when the call is repeated."""
        path = Path(path)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
        }
        import_id = import_id or import_id_of(path)
        params = _params(import_id, format, columns, dry_run, labels_id, files)

        def content() -> Iterator[bytes]:
            return _chunks(path, on_sent or (lambda sent: None))

        return self._import(params, content, headers)

    def import_url(
        self,
        url: str,
        *,
        format: str | None = None,  # noqa: A002 - as the API has it
        columns: Mapping[str, str] | None = None,
        import_id: str | None = None,
        dry_run: bool = False,
        labels_id: str | None = None,
        files: str | None = None,
    ) -> ImportReport:
        """Have the API read the file at a URL, or at a path that it allows, as `import_file` does.

        import_id: by default made of the URL: name another where there is another file by now."""
        import_id = import_id or sha256(url.encode()).hexdigest()[:32]
        params = _params(import_id, format, columns, dry_run, labels_id, files)
        return self._import({**params, "url": url})

    def _import(
        self,
        params: Mapping[str, str],
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


def _params(
    import_id: str,
    wanted: str | None,
    columns: Mapping[str, str] | None,
    dry_run: bool,
    labels_id: str | None,
    files: str | None,
) -> dict[str, str]:
    named = ",".join(f"{name}={column}" for name, column in (columns or {}).items())
    given = {"format": wanted, "columns": named, "labels_id": labels_id, "files": files}
    params = {"import_id": import_id, "dry_run": str(dry_run).lower()}
    return {**params, **{name: value for name, value in given.items() if value}}


def import_id_of(path: Path) -> str:
    """Return the id of a file's content."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:32]


def _chunks(path: Path, on_sent: Callable[[int], object]) -> Iterator[bytes]:
    sent = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            on_sent(sent)
