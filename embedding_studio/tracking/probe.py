"""Whether MLflow's artifacts can be written, read and deleted, found out by doing so."""

import uuid
from pathlib import Path
from urllib.parse import quote

import httpx

from embedding_studio.errors import StoreUnavailable

_ROUTE = "/api/2.0/mlflow-artifacts/artifacts/"
_TIMEOUT_SECONDS = 10.0
_CONTENT = b"written by `embedding-studio doctor`, and deleted again"


def probe_artifacts(tracking_uri: str, folder: Path) -> str:
    """Write, read and delete a small file where model files lie; return where that was.

    folder: where they lie when MLflow is a local database. Raises StoreUnavailable."""
    name = f"doctor-{uuid.uuid4().hex}"
    if tracking_uri.startswith(("http://", "https://")):
        return _probe_server(tracking_uri, name)
    try:
        file = folder / name
        file.write_bytes(_CONTENT)
        try:
            found = file.read_bytes()
        finally:
            file.unlink()
    except OSError as error:
        raise StoreUnavailable(f"{folder}: {error}") from error
    if found != _CONTENT:
        raise StoreUnavailable(f"{folder} does not give back what was written")
    return str(folder)


def _probe_server(uri: str, name: str) -> str:
    place = httpx.URL(uri)
    shown = f"{place.scheme}://{place.netloc.decode()}"
    url = uri.rstrip("/") + _ROUTE + quote(name)
    try:
        with httpx.Client(timeout=_TIMEOUT_SECONDS) as http:
            http.put(url, content=_CONTENT).raise_for_status()
            found = http.get(url).raise_for_status().content
            http.delete(url).raise_for_status()
    except httpx.HTTPStatusError as error:
        answer = f"{error.request.method} answers {error.response.status_code}"
        raise StoreUnavailable(f"artifacts of {shown}: {answer}") from error
    except httpx.HTTPError as error:
        raise StoreUnavailable(f"artifacts of {shown}: {error or type(error).__name__}") from error
    if found != _CONTENT:
        raise StoreUnavailable(f"{shown} does not give back what was written")
    return shown
