from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.memory import MemoryDocuments
from tests.api.samples import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_folder=tmp_path, max_page_size=50, max_sessions_per_request=20)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with closing(Store(MemoryDocuments())) as store:
        yield store


@pytest.fixture
def api(store: Store, settings: Settings, clock: Clock) -> Iterator[TestClient]:
    with TestClient(create_app(store, settings, clock), base_url="http://localhost/api/v1") as api:
        yield api


@pytest.fixture
def signing(store: Store, settings: Settings, clock: Clock) -> TestClient:
    """An installation that has a secret to sign webhooks with."""
    with_secret = settings.replaced(webhook_secret="whsec_" + "c2VjcmV0" * 4)
    return TestClient(create_app(store, with_secret, clock), base_url="http://localhost/api/v1")
