"""The connection to an API, by which a client's calls are sent, retried and answered."""

import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

import httpx
import stamina
from pydantic import BaseModel, TypeAdapter

from embedding_studio.errors import (
    CorruptModel,
    EmbeddingStudioError,
    InvalidInput,
    StoreUnavailable,
)
from embedding_studio.wire.errors import ERROR_BY_STATUS, summarize_field_errors

T = TypeVar("T")

REPORT_SECONDS = 600.0
"""How long a report may take: a large batch is read through."""
_VALUES_PER_REQUEST = 500
_BYTES_PER_REQUEST = 4 * 1024 * 1024  # far below what the API takes by default


class Connection:
    """One API, the key that is shown to it, and how long it is tried."""

    def __init__(
        self,
        base_url: str,
        #: `es_...`, needed once the API has keys; its project is the one that is seen
        api_key: str | None = None,
        *,
        #: seconds per connection, read and write
        timeout: float = 30.0,
        #: after which a call is not tried again
        retry_seconds: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._retry_seconds = retry_seconds
        self._http = httpx.Client(
            base_url=f"{self._base_url}/api/v1",
            timeout=timeout,
            transport=transport,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _get(self, kind: type[T], path: str, **params: Any) -> T:
        return self._read(kind, self._call("GET", path, params=params))

    def _put(self, kind: type[T], path: str, **params: Any) -> T:
        return self._read(kind, self._call("PUT", path, params=params))

    def _post(self, kind: type[T], path: str, body: BaseModel) -> T:
        # the body was not validated here: the server judges it, in its own words
        return self._read(kind, self._call("POST", path, json=body.model_dump(warnings=False)))

    @staticmethod
    def _read(kind: type[T], response: httpx.Response) -> T:
        adapter: TypeAdapter[T] = _adapter_of(kind)  # type: ignore[arg-type] # types are hashable
        return adapter.validate_json(response.content)

    def _call(self, method: str, path: str, fine: int = 200, **content: Any) -> httpx.Response:
        return self._retrying(lambda: checked(self._http.request(method, path, **content), fine))

    def _download(self, path: str, target: Path) -> None:
        def stream() -> httpx.Response:
            with self._http.stream("GET", path) as response, target.open("wb") as file:
                if not response.is_success:
                    response.read()
                checked(response)
                for chunk in response.iter_bytes():
                    file.write(chunk)
            return response

        self._retrying(stream)

    def _export(self, path: str, file: Path) -> None:
        """Write an answer to a file, which appears, or is replaced, only once it is complete."""
        part = file.with_name(f".{file.name}.part")
        try:
            self._download(path, part)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    def _download_model(self, path: str, folder: Path) -> None:
        """Unpack a ZIP into a folder that must not exist yet or be empty, and appears only once it
        is complete. Raises InvalidInput, and CorruptModel for a damaged download."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidInput(f"{folder} exists and is not an empty folder: name another one")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the last step is one rename within a file system
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
            archive, unpacked = Path(scratch, "model.zip"), Path(scratch, "model")
            self._download(path, archive)
            _unpack(archive, unpacked)
            unpacked.replace(folder)

    def _retrying(
        self, call: Callable[[], httpx.Response], attempts: int | None = None
    ) -> httpx.Response:
        """Repeat a call so often, however long each takes; or for as long as calls are tried."""
        seconds = None if attempts else self._retry_seconds
        try:
            caller = stamina.RetryingCaller(attempts=attempts, timeout=seconds)
            return caller(self._is_transient, call)
        except httpx.HTTPStatusError as error:
            raise _error_of(error.response) from error
        except httpx.HTTPError as error:
            raise StoreUnavailable(
                f"the API at {self._base_url} does not answer: {error or type(error).__name__}"
            ) from error

    def _is_transient(self, error: Exception) -> bool | float:
        """Return whether to try again, or in how many seconds."""
        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            wait = error.response.headers.get("Retry-After", "")
            if status == 429 and wait.isdigit():
                return float(wait) if float(wait) <= self._retry_seconds else False
            return status == 429 or (status >= 500 and status != 501)
        return isinstance(
            error, (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
        )


def bulk_bodies(name: str, values: Iterable[object]) -> Iterator[bytes]:
    """Yield bodies, {name: values}, of as many values as one request may carry."""
    chunk: list[bytes] = []
    size_bytes = 0
    for value in values:
        encoded = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        is_full = size_bytes + len(encoded) > _BYTES_PER_REQUEST
        if chunk and (is_full or len(chunk) == _VALUES_PER_REQUEST):
            yield _bulk_body(name, chunk)
            chunk, size_bytes = [], 0
        chunk.append(encoded)
        size_bytes += len(encoded)
    if chunk:
        yield _bulk_body(name, chunk)


def _bulk_body(name: str, values: Iterable[bytes]) -> bytes:
    return b'{"%s":[%s]}' % (name.encode(), b",".join(values))


@cache
def _adapter_of(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(response: httpx.Response, fine: int = 200) -> httpx.Response:
    if response.status_code != fine:
        response.raise_for_status()
    return response


def _error_of(response: httpx.Response) -> EmbeddingStudioError:
    kind = ERROR_BY_STATUS.get(response.status_code, EmbeddingStudioError)
    try:
        detail = response.json()["detail"]
    except (ValueError, LookupError, TypeError):
        return kind(f"{response.request.url} answered {response.status_code}")
    return kind(summarize_field_errors(detail) if isinstance(detail, list) else str(detail))


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\\" in name:
                    raise CorruptModel(f"the download holds the unsafe path {name!r}")
            members.extractall(folder)
    except zipfile.BadZipFile as error:
        raise CorruptModel(f"the download is damaged: {error}") from error
