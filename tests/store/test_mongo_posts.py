"""How many commands of MongoDB a posted session costs, whoever else posts meanwhile."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pymongo
import pytest

from embedding_studio.store import Store
from embedding_studio.store.mongo import MongoDocuments
from tests.contracts.document_backends import mongo_place
from tests.contracts.store_backends import QueryListener
from tests.contracts.store_processes import NOW, make_session, register

pytestmark = pytest.mark.slow

WRITERS = [1, 8, 32]
BULK = 100


@pytest.fixture
def listener() -> QueryListener:
    """What hears every command."""
    return QueryListener()


@pytest.fixture
def store(secantus_url: str, listener: QueryListener) -> Iterator[Store]:
    """A store in use: other sessions were posted by this process before."""
    url = mongo_place(secantus_url).url
    assert url is not None
    client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(
        url, event_listeners=[listener]
    )
    with closing(Store(MongoDocuments(url, client))) as store:
        register(store, [make_session("first")])
        listener.queries.clear()
        yield store


@pytest.mark.parametrize("writers", WRITERS)
def test_a_single_post_takes_up_to_four_commands(
    store: Store, listener: QueryListener, writers: int
) -> None:
    """On average over twice as many posts as there are writers, all at once."""

    def post(number: int) -> None:
        register(store, [make_session(f"s-{number}")])

    posts = 2 * writers
    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(post, range(posts)))
    assert len(listener.queries) <= 4 * posts


@pytest.mark.parametrize("writers", WRITERS)
def test_a_session_of_a_bulk_takes_up_to_two_commands(
    store: Store, listener: QueryListener, writers: int
) -> None:
    """On average over a bulk of a hundred from each writer, all at once; all of it is kept."""

    def post(number: int) -> None:
        register(store, [make_session(f"s-{number}-{place}") for place in range(BULK)])

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(post, range(writers)))
    assert len(listener.queries) <= 2 * BULK * writers
    assert store.clickstream.release("r", NOW).session_count == 1 + BULK * writers
