"""Fixtures of the contract suites."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from embedding_studio.store import Store
from tests.contracts.store_backends import PARAMS, Backend, make_backend
from tests.contracts.store_processes import meet_at

PROCESSES = 3


@pytest.fixture(params=PARAMS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """An empty database of each kind."""
    return make_backend(request.param, request)


@pytest.fixture
def shared(backend: Backend) -> Backend:
    """A database that other processes may share."""
    if not backend.is_shared:
        pytest.skip("what is in memory lives in one process")
    return backend


@pytest.fixture
def store(backend: Backend) -> Iterator[Store]:
    """A store on an empty database."""
    store = backend.open()
    yield store
    store.close()


@pytest.fixture(scope="session")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Three other processes that begin each race together."""
    context = get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, context, meet_at, (barrier,)) as pool:
        yield pool
