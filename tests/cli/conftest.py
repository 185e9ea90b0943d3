"""An API, and the command line that is told where it is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner, Result

from embedding_studio.api.app import create_app
from embedding_studio.api.server import listen
from embedding_studio.cli.app import app
from embedding_studio.settings import Settings
from embedding_studio.store import Store, open_store
from tests.serving.conftest import encoders

__all__ = ["encoders"]  # a fixture

Shell = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path / 'store.db'}")) as store:
        yield store


@pytest.fixture
def api_url(store: Store, tmp_path: Path) -> Iterator[str]:
    """The address of an API on the store, in a thread of the test's process."""
    served = create_app(store, Settings(data_folder=tmp_path))
    server = uvicorn.Server(uvicorn.Config(served, log_config=None))
    with closing(listen("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def shell(api_url: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run a command against the API."""
    monkeypatch.setenv("ES_API_URL", api_url)
    monkeypatch.setenv("ES_DATA_FOLDER", "/nowhere")
    return lambda *words: CliRunner().invoke(app, words)
