from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.memory import MemoryDocuments
from tests.api.samples import Clock
from tests.pages.samples import Ids, fill


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_folder=tmp_path)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with closing(Store(MemoryDocuments())) as store:
        yield store


@pytest.fixture
def ids(store: Store, tmp_path: Path) -> Ids:
    return fill(store, tmp_path)


@pytest.fixture
def open_browser(
    store: Store, settings: Settings, clock: Clock
) -> Iterator[Callable[..., TestClient]]:
    """Returns a browser, which keeps cookies, at an address of the API's."""
    app = create_app(store, settings, clock)
    with ExitStack() as stack:

        def open_browser(address: str = "http://localhost") -> TestClient:
            client = TestClient(app, base_url=address, follow_redirects=False)
            return stack.enter_context(client)

        yield open_browser


@pytest.fixture
def browser(open_browser: Callable[..., TestClient]) -> TestClient:
    return open_browser()
