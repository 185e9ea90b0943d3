"""A search engineer's way from the first session to a rollback, on the page, in a real browser.

`--screenshots docs/images` takes the way with the linear adapter on the demo's searches, and keeps
the pictures that docs/page.md shows.
"""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect

from embedding_studio.api.app import create_app
from embedding_studio.api.server import listen
from embedding_studio.clock import utc_now
from embedding_studio.keys import Scope, make_key
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from tests.e2e.icons import search_for_icons
from tests.iterations import Bench, open_bench
from tests.training.tiny import PACKAGED_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PLUGINS = Path(__file__).parents[2] / "plugins"
SECONDS = 60
DESKTOP, PHONE = ViewportSize(width=1100, height=800), ViewportSize(width=390, height=844)
PICTURES, MOST_HIGH = {"task-light-1100", "model-dark-1100"}, 1845
"""Those that are kept, cut at so many pixels."""
LOOKS = [("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE), ("dark", PHONE)]


@pytest.fixture(autouse=True)
def patience(screenshots: Path | None) -> Iterator[None]:
    """How long is waited for what is expected: real data takes minutes to learn from."""
    expect.set_options(timeout=1000 * (10 * SECONDS if screenshots else SECONDS))
    yield
    expect.set_options(timeout=5000)  # playwright's own


@pytest.fixture
def bench(
    settings: Settings, screenshots: Path | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A house whose worker works when told to; on real data where pictures are to be kept."""
    if screenshots is not None:
        monkeypatch.setenv("ES_INITIAL_MODEL", str(PACKAGED_MODEL))
        settings = settings.replaced(plugins_folder=PLUGINS)
    bench = open_bench(settings)
    yield bench
    bench.house.executor.close()
    bench.house.store.close()


@pytest.fixture
def url(bench: Bench) -> Iterator[str]:
    """Where the API over that house is."""
    listener = listen("127.0.0.1", 0)
    app = create_app(bench.house.store, bench.house.settings)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@dataclass
class Eye:
    """Looks at pages in the light and in the dark, on a desk and on a phone. folder: where pictures
    are kept; None: nowhere."""

    page: Page
    folder: Path | None

    def examine(self, name: str) -> None:
        """Fail for what axe-core calls a violation on the page that is open, and for a page that is
        wider than its window."""
        found = []
        for scheme, size in LOOKS:
            self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            self.page.set_viewport_size(size)
            where = f"{name}, {scheme}, {size['width']} wide"
            for one in Axe().run(self.page).response["violations"]:
                found += [f"{where}: {one['id']}: {node['html']}" for node in one["nodes"]]
            wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            if self.page.evaluate(wide):
                found.append(f"{where}: it is wider than its window")
            picture = f"{name}-{scheme}-{size['width']}"
            if self.folder is not None and picture in PICTURES:
                self._keep(picture, self.folder)
        self.page.emulate_media(color_scheme="light")
        self.page.set_viewport_size(DESKTOP)
        assert not found

    def _keep(self, name: str, folder: Path) -> None:
        whole = Image.open(BytesIO(self.page.screenshot(full_page=True)))
        picture = whole.crop((0, 0, whole.width, min(whole.height, MOST_HIGH)))
        folder.mkdir(parents=True, exist_ok=True)
        picture.quantize(64).save(folder / f"page-{name}.png", optimize=True)


def sign_in(page: Page, store: Store) -> str:
    """Sign in with a new key, and return it."""
    key, text = make_key("Ann's", [Scope.ADMIN], "default", utc_now())
    store.keys.add(key)
    page.goto("/")
    expect(page).to_have_title("Sign in · Embedding Studio")
    page.get_by_label("API key").fill(text)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Tasks", level=1)).to_be_visible()
    return text


def test_from_the_first_session_to_a_rollback(
    browser: Browser, bench: Bench, url: str, screenshots: Path | None
) -> None:
    """Sessions come, their batch is looked at and released, a task is asked for and watched, its
    model is champion, and is rolled back. Each page on the way is accessible, in the light and in
    the dark, on a desk and on a phone."""
    method, trials = ("Linear adapter", 12) if screenshots else ("Climbing", 4)
    with browser.new_context(base_url=url, viewport=DESKTOP) as context:
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        eye = Eye(page, screenshots)
        bench.worker.beat()
        key = sign_in(page, bench.house.store)
        eye.examine("empty")

        if screenshots:
            search_for_icons(bench, 20_000)
        else:
            _post_sessions(url, key, 60)
        page.get_by_role("link", name="Batches").click()
        expect(page.get_by_text("collecting")).to_be_visible()
        eye.examine("batches")
        page.get_by_role("button", name="Release it").click()
        expect(page.get_by_role("heading", name=re.compile("^Batch "))).to_be_visible()
        expect(page.get_by_text("released", exact=True)).to_be_visible()
        eye.examine("batch")
        batch_id = page.url.rpartition("/")[2]

        bench.worker.beat()
        page.get_by_role("link", name="Tasks").click()
        page.get_by_label("Method").select_option(method)
        page.get_by_label("Trials, at most").fill(str(trials))
        page.get_by_label("Learn from").select_option(batch_id)
        page.get_by_role("button", name="Start").click()
        state = page.locator("#state")
        expect(state.get_by_text("Waits for a worker")).to_be_visible()
        page.evaluate("window.isTheSame = true")
        working = threading.Thread(target=bench.worker.work_once)
        working.start()
        expect(
            state.get_by_text(re.compile("[2-9] of .* trials have ended|Promoted"))
        ).to_be_visible()
        eye.examine("task-at-work")
        working.join()
        # without a click, and without loading the page again
        expect(state.get_by_text("Promoted")).to_be_visible()
        expect(page.get_by_role("img", name=re.compile("on validation"))).to_be_visible()
        expect(page.get_by_role("heading", name="Verdict")).to_be_visible()
        assert page.evaluate("window.isTheSame")
        eye.examine("task")
        bench.worker.beat()
        page.get_by_role("link", name="Tasks").click()
        eye.examine("tasks")

        page.get_by_role("link", name="Models").click()
        eye.examine("models")
        page.get_by_role("link", name=method).click()
        expect(page.get_by_text("Version 2 is champion")).to_be_visible()
        page.get_by_text("Roll back to version 1").click()
        page.get_by_label("Reason").first.fill("fewer orders since Monday")
        page.get_by_role("button", name="Roll back").click()
        expect(page.get_by_text("Version 1 is champion")).to_be_visible()
        expect(page.get_by_role("cell", name="fewer orders since Monday")).to_be_visible()
        eye.examine("model")
        champion = bench.house.store.models.find(method)
        assert champion is not None
        assert champion.champion == 1

        bench.worker.beat()
        page.get_by_role("link", name="Health").click()
        expect(page.get_by_text("test-worker")).to_be_visible()
        eye.examine("health")
        page.goto("/tasks/unknown")
        eye.examine("error")
        page.get_by_role("button", name="Sign out").click()
        expect(page).to_have_title("Sign in · Embedding Studio")
        eye.examine("sign-in")


def _post_sessions(url: str, key: str, count: int) -> None:
    sessions = [
        {
            "session_id": f"s-{number}",
            "search_query": f"query {number}",
            "search_results": [
                {"object_id": f"item-{place}", "meta": {"text": f"item {place}"}}
                for place in range(2)
            ],
            "events": [{"event_id": f"e-{number}", "object_id": "item-0"}],
        }
        for number in range(count)
    ]
    answer = httpx.post(
        f"{url}/api/v1/clickstream/sessions",
        json={"sessions": sessions},
        headers={"Authorization": f"Bearer {key}"},
    )
    assert {one["status"] for one in answer.json()["sessions"]} == {"created"}


def test_it_works_without_javascript(browser: Browser, bench: Bench, url: str) -> None:
    """A task that waits is canceled and restarted; its page loads itself again."""
    bench.post_sessions()
    task = bench.post_task()
    with browser.new_context(base_url=url, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/")
        state = page.locator("#state")
        page.get_by_role("link", name=f"Toy task {task.id}").click()
        page.get_by_text("Cancel it").click()
        page.get_by_role("button", name="Cancel the task").click()
        expect(state.get_by_text("Nothing of it is kept")).to_be_visible()
        page.get_by_role("button", name="Restart").click()
        expect(state.get_by_text("Waits for a worker")).to_be_visible()
        bench.house.store.tasks.cancel(task.id, utc_now())
        expect(state.get_by_text("Nothing of it is kept")).to_be_visible()


def test_another_site_can_do_nothing(browser: Browser, bench: Bench, url: str) -> None:
    """A page of another origin that sends a form, or asks the JSON API, is refused, though the
    browser is signed in; a link from there shows the page."""
    task = _task_of(bench)
    with browser.new_context(base_url=url) as context:
        page = context.new_page()
        sign_in(page, bench.house.store)
        _open_evil(context, page, url, task)
        page.get_by_role("button", name="Win a prize").click()
        expect(page).to_have_title("Sign in · Embedding Studio")  # for no cookie came along
        assert bench.house.store.tasks.get(task).status == "pending"
        page.goto("/")
        expect(page.get_by_role("heading", name="Tasks", level=1)).to_be_visible()
        _open_evil(context, page, url, task)
        status = page.evaluate(
            """async (url) => {
              try { return (await fetch(url, {credentials: "include"})).status; }
              catch (error) { return "refused"; }
            }""",
            f"{url}/api/v1/fine-tuning/task",
        )
        assert status == "refused"
        page.get_by_role("link", name="Look").click()
        expect(page.locator("#state").get_by_text("Waits for a worker")).to_be_visible()


def _task_of(bench: Bench) -> str:
    bench.post_sessions()
    return bench.post_task().id


def _open_evil(context: BrowserContext, page: Page, url: str, task_id: str) -> None:
    """Open a page of another site, which knows all but the token."""
    form = (
        f'<form method="post" action="{url}/tasks/{task_id}/cancel"><button>Win a prize</button>'
        f'</form><a href="{url}/tasks/{task_id}">Look</a>'
    )
    site = "http://evil.example/"
    context.route(f"{site}**", lambda route: route.fulfill(body=form, content_type="text/html"))
    page.goto(site)
