"""A shop's page that posts clicks from a real browser, which asks for leave before it posts."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser

from embedding_studio.api.app import create_app
from embedding_studio.api.server import listen
from embedding_studio.clock import utc_now
from embedding_studio.keys import Scope, make_key
from embedding_studio.settings import Settings
from embedding_studio.store import open_store

pytestmark = pytest.mark.slow

POST = """async ([url, key, session]) => {
  try {
    const answer = await fetch(url, {method: "POST", keepalive: true, body: JSON.stringify(session),
      headers: {"Content-Type": "application/json", "Authorization": `Bearer ${key}`}});
    return [answer.status, await answer.json(), answer.headers.get("Retry-After")];
  } catch (error) {
    return [0, String(error), null];
  }
}"""
SESSION = {"session_id": "s-1", "search_query": "red shoes", "search_results": []}


class EmptyPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def shop() -> Iterator[str]:
    """The origin of an empty page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[str, str]]:
    """Serve the API; give the URL of a route and a key that may post to it."""
    key, text = make_key("page", [Scope.INGEST], "default", utc_now())
    with (
        closing(open_store(settings.resolved_store_url)) as store,
        closing(listen("127.0.0.1", 0)) as listener,
    ):
        store.keys.add(key)
        server = uvicorn.Server(uvicorn.Config(create_app(store, settings), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield f"{url}/api/v1/clickstream/session", text
        server.should_exit = True
        thread.join()


def test_a_shops_page_posts_and_reads_refusals(browser: Browser, shop: str, tmp_path: Path) -> None:
    """A page of a named origin posts a session, and reads why others are refused; a page of
    another origin gets nothing."""
    settings = Settings(data_folder=tmp_path, cors_origins=shop, rate_limit="3/hour")
    with serving(settings) as (url, key), browser.new_context() as context:
        page = context.new_page()

        def post(key: str, **more: object) -> Any:
            return page.evaluate(POST, [url, key, {**SESSION, **more}])

        page.goto(shop)
        status, outcome, _ = post(key)
        assert (status, outcome["status"]) == (200, "created")
        assert post("es_wrong")[0] == 401
        status, problem, _ = post(key, createdat=1)
        assert (status, problem["detail"][0]["loc"]) == (422, ["body", "createdat"])
        post(key)
        status, problem, seconds = post(key)
        assert (status, int(seconds) > 0) == (429, True)
        assert "ES_RATE_LIMIT" in problem["detail"]
        page.goto(shop.replace("localhost", "127.0.0.1"))
        assert post(key)[0] == 0
