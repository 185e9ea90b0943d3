"""No clicks are lost or doubled: the API, or its database, dies in mid-post."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from os import environ
from pathlib import Path

import pytest

from embedding_studio.clickstream import NumberedSession, Session, SessionEvent
from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.clock import utc_now
from embedding_studio.settings import Settings
from embedding_studio.store import Store, open_store
from tests.iterations import make_session
from tests.servers import Secantus, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

CLIENTS = 3
PER_POST = 5


class Api:
    """`embedding-studio api` on one port, killed and started again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.replaced(api_port=free_port())
        self.url = f"http://127.0.0.1:{self.settings.api_port}"
        self.log = settings.data_folder / "api.log"
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "embedding_studio", "api"],
                env={**environ, **self.settings.as_environment()},
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._spawn()


class Searcher(threading.Thread):
    """Posts sessions, then one more click on each, until told to stop; keeps what was answered."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__()
        self._url = url
        self._number = number
        self.is_done = threading.Event()
        self.acknowledged: dict[str, set[str]] = {}  # event ids by session

    def run(self) -> None:
        with EmbeddingStudioClient(self._url, timeout=5.0, retry_seconds=120.0) as client:
            place = 0
            while not self.is_done.is_set():
                sessions = [self._session(place + offset) for offset in range(PER_POST)]
                client.post_sessions(sessions)
                for session in sessions:
                    self.acknowledged[session.session_id] = {session.events[0].event_id}
                for session in sessions:
                    late = SessionEvent(f"late {session.session_id}", "item-1", utc_now())
                    client.post_events(session.session_id, [late])
                    self.acknowledged[session.session_id].add(late.event_id)
                place += PER_POST

    def _session(self, place: int) -> Session:
        name = f"{self._number}-{place}"
        event = SessionEvent(f"first {name}", "item-0", utc_now())
        return make_session(0, session_id=name, created_at=utc_now(), events=(event,))


@pytest.fixture
def start_api() -> Iterator[Callable[[Settings], Api]]:
    started: list[Api] = []

    def start(settings: Settings) -> Api:
        started.append(Api(settings))
        return started[-1]

    yield start
    for api in started:
        api.kill()


def break_three_times(api: Api, break_and_mend: Callable[[], None]) -> list[Searcher]:
    """Let searchers post, break what they need three times under way, and let them end."""
    searchers = [Searcher(api.url, number) for number in range(CLIENTS)]
    for searcher in searchers:
        searcher.start()

    def posted() -> int:
        return sum(len(searcher.acknowledged) for searcher in searchers)

    for _ in range(3):
        before = posted()
        wait_until(lambda: posted() >= before + 10 * PER_POST)  # noqa: B023
        break_and_mend()
    before = posted()
    wait_until(lambda: posted() >= before + 5 * PER_POST)
    for searcher in searchers:
        searcher.is_done.set()
    for searcher in searchers:
        searcher.join()
    return searchers


def check_clicks(store: Store, searchers: list[Searcher]) -> None:
    """Each acknowledged session is there once with each of its acknowledged events once, and the
    batch's numbers have no gaps."""
    batch = store.clickstream.release("all", utc_now())
    stored: list[NumberedSession] = []
    while page := store.clickstream.read(batch.batch_id, len(stored), 1_000_000):
        stored += page
    assert [one.number for one in stored] == list(range(1, batch.session_count + 1))
    events = {
        one.session.session_id: Counter(event.event_id for event in one.session.events)
        for one in stored
    }
    assert len(events) == len(stored), "a session is there twice"
    for searcher in searchers:
        for session_id, acknowledged in searcher.acknowledged.items():
            assert events[session_id] == Counter(acknowledged)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("secantus", marks=pytest.mark.faults)])
def test_killing_the_api_loses_and_doubles_nothing(
    tmp_path: Path,
    start_api: Callable[[Settings], Api],
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    """kill -9 of the API while clients post and retry: what was acknowledged is there once."""
    url = (
        f"sqlite:///{tmp_path / 'store.db'}"
        if kind == "sqlite"
        else f"{request.getfixturevalue('secantus_url')}/clicks"
    )
    api = start_api(Settings(data_folder=tmp_path, store_url=url))

    def kill_and_restart() -> None:
        api.kill()
        api.restart()

    searchers = break_three_times(api, kill_and_restart)
    store = open_store(url)
    check_clicks(store, searchers)
    store.close()


@pytest.mark.faults
def test_an_outage_of_the_database_loses_and_doubles_nothing(
    tmp_path: Path, start_api: Callable[[Settings], Api], secantus: Secantus
) -> None:
    """The database killed and started again while clients post through the API: the same holds."""
    waits = "serverSelectionTimeoutMS=500&connectTimeoutMS=500&socketTimeoutMS=1000"
    api = start_api(Settings(data_folder=tmp_path, store_url=f"{secantus.url}/clicks?{waits}"))

    def kill_and_restart() -> None:
        secantus.kill()
        secantus.restart()

    searchers = break_three_times(api, kill_and_restart)
    assert api.process.poll() is None
    store = open_store(f"{secantus.url}/clicks")
    check_clicks(store, searchers)
    store.close()
