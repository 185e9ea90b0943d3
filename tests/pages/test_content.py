"""What the page shows of a project."""

from datetime import timedelta
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.tasks import TaskRequest
from tests.api.samples import METHOD, START, Clock, record_worker
from tests.pages.reading import Page, look
from tests.pages.samples import EVIL, Ids

MODEL = f"/models/{quote(METHOD)}"


def pages_of(ids: Ids) -> list[str]:
    tasks = [f"/tasks/{one}" for one in (ids.done, ids.at_work, ids.failed)]
    return ["/", *tasks, "/batches", f"/batches/{ids.released}", "/models", MODEL, "/health"]


def test_tasks_tell_where_they_stand(browser: TestClient, ids: Ids) -> None:
    """One at work has a bar and what is left, one that is done its verdict, one that failed why."""
    page = look(browser, "/")
    assert "Searches: 2 of 8 trials have ended; best so far 0.4400" in page.text
    assert "about 4 min left in this phase" in page.text
    (bar,) = page.named("progress")
    assert (bar["value"], bar["max"], bar["aria-label"]) == ("2", "8", "Trials that have ended")
    assert "Not promoted: the difference may be chance" in page.text
    assert f"no query {EVIL} has clicks" in page.text
    links = [one["href"] for one in page.named("a")]
    assert {f"/tasks/{one}" for one in (ids.done, ids.at_work, ids.failed)} < set(links)


def test_a_task_shows_trials_verdict_and_queries(
    browser: TestClient, ids: Ids, settings: Settings
) -> None:
    """Its curves are a picture with a name and a table, its verdict has metrics with intervals and
    the queries that changed most, and a link leads to its runs in MLflow."""
    page = look(browser, f"/tasks/{ids.done}")
    (plot,) = page.named("svg")
    assert plot["role"] == "img"
    assert plot["aria-label"] == "ndcg_at_10 on validation, by report, of 2 trials"
    curves = [(one["class"], len(one["points"].split())) for one in page.named("polyline")]
    assert curves == [("curve pruned", 2), ("curve best", 3)]
    assert f"3 failed: trial 3: {EVIL}" in page.text
    assert "rate 0.000312, epochs 2" in page.text
    assert "ndcg_at_10 0.4100 before, 0.4600 after (+0.0500, with 95 % confidence" in page.text
    assert "recall_at_10 0.6200 0.6100 -0.0100 -0.0300 to +0.0100" in page.text
    assert "winter jacket 0.200 0.900" in page.text
    assert "hat 0.800 0.600" in page.text
    links = [one["href"] for one in page.named("a")]
    mlflow = f"{settings.mlflow_public_url}/#/experiments/7"
    assert any(one.startswith(f"{mlflow}/runs?") for one in links)
    assert f"{mlflow}/runs/run-3?workflowType=machine_learning" in links
    assert f"fine tuning method {METHOD} batch id {ids.released} max trials 8" in page.text


def test_a_batch_has_its_report(browser: TestClient, ids: Ids) -> None:
    """What the report of a batch tells is on its page; the one collecting is listed first."""
    page = look(browser, f"/batches/{ids.released}")
    assert "40 sessions, of which 40 teach" in page.text
    assert [one["aria-label"] for one in page.named("svg") if "aria-label" in one] == [
        "Click-through by position"
    ]
    listed = look(browser, "/batches").text
    assert listed.index("20 sessions") < listed.index("40 sessions")


@pytest.mark.usefixtures("ids")
def test_a_model_shows_its_versions_and_gain(browser: TestClient) -> None:
    """The champion, each version's state and verdict, what the champions gained together with its
    intervals, and who moved them."""
    assert "champion: version 3" in look(browser, "/models").text
    page = look(browser, MODEL)
    assert "Version 3 is champion" in page.text
    assert [one["class"] for one in page.named("span") if "badge" in one.get("class", "")] == [
        "badge champion",
        "badge former",
        "badge former",
    ]
    circles = [float(one["cy"]) for one in page.named("circle")]
    assert circles[0] > circles[1] > circles[2]
    assert len([one for one in page.named("line") if one.get("class") == "whisker"]) == 2
    assert "version 3, promoted 2026-02-01 12:00: +0.1000" in page.text


def test_health_is_told_as_the_api_tells_it(
    browser: TestClient, store: Store, clock: Clock
) -> None:
    """The same parts in the same words; what is missing is no error of the page."""
    record_worker(store, plugin_failures={"bad.py": f"no {EVIL}"})
    told = browser.get("/api/v1/health").json()
    page = look(browser, "/health")
    for part in ("store", "mlflow", "worker"):
        assert told[part]["detail"] in page.text
    assert f"bad.py did not load: no {EVIL}" in page.text
    assert METHOD in page.text


def test_what_people_typed_is_no_markup(browser: TestClient, ids: Ids) -> None:
    """On no page does anything that was posted make an element; the only script is our file."""
    for path in pages_of(ids):
        page = look(browser, path)
        assert {one.get("src") for one in page.named("script")} <= {"/page.js"}, path
        assert not [one for _, given in page.found for one in given if one.startswith("on")], path
        assert not [given for _, given in page.found if "style" in given], path


def test_every_answer_is_guarded(browser: TestClient, ids: Ids) -> None:
    """No script but our file runs, no other site frames a page or takes its forms, and nothing is
    kept by caches."""
    for path in [*pages_of(ids), "/sign-in", "/tasks/unknown"]:
        headers = browser.get(path).headers
        policy = dict(one.split(" ", 1) for one in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["form-action"] == "'self'"
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"


def test_only_what_goes_on_is_loaded_again(browser: TestClient, ids: Ids) -> None:
    """Without scripts by the page itself, with them part by part; a task that has ended is not."""
    live, ended = ("/", f"/tasks/{ids.at_work}"), f"/tasks/{ids.done}"
    for path, is_live in ((live[0], True), (live[1], True), (ended, False)):
        page = look(browser, path)
        (html,) = page.named("html")
        assert ("data-refresh" in html) is is_live
        refreshes = [one for one in page.named("meta") if one.get("http-equiv") == "refresh"]
        assert len(refreshes) == is_live
        assert ("Stop that" in page.text) is is_live
        still = look(browser, f"{path}?still=1")
        assert not [one for one in still.named("meta") if one.get("http-equiv") == "refresh"]
    assert browser.get("/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert browser.get("/page.css").headers["content-type"] == "text/css; charset=utf-8"


def test_long_lists_come_by_pages(browser: TestClient, store: Store) -> None:
    """Older and newer ones are a link away."""
    for _ in range(31):
        store.tasks.cancel(store.tasks.add(TaskRequest(METHOD), START)[0].id, START)
    first = look(browser, "/")
    assert len(first.named("li")) == 30
    assert "?skip=30" in [one["href"] for one in first.named("a")]
    second = look(browser, "/?skip=30")
    assert len(second.named("li")) == 1
    assert "?skip=0" in [one["href"] for one in second.named("a")]


def test_an_empty_project_tells_what_to_do_first(browser: TestClient) -> None:
    """Each page of a new installation says what makes it fill."""
    assert "post these to /api/v1/clickstream/session" in look(browser, "/").text
    assert "No session came yet" in look(browser, "/batches").text
    assert "No model is registered" in look(browser, "/models").text


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/tasks/unknown", 404, "unknown"),
        ("/batches/unknown", 404, "unknown"),
        ("/models/unknown", 404, "unknown"),
        ("/?skip=-1", 422, "skip"),
        ("/tasks/a/b/c", 404, "Not Found"),
    ],
)
def test_errors_are_pages(browser: TestClient, path: str, status: int, words: str) -> None:
    """They say what the API says; the API's own stay JSON."""
    answer = browser.get(path)
    assert answer.status_code == status
    assert words in Page(answer).text
    assert browser.get("/api/v1/nothing").json() == {"detail": "Not Found"}
    assert browser.get("/api/v1/fine-tuning/task/unknown").json()["detail"]


def test_a_busy_browser_is_told_when_to_come_back(
    store: Store, settings: Settings, clock: Clock
) -> None:
    """A refusal of the gate is a page too, with its Retry-After."""
    app = create_app(store, settings.replaced(rate_limit="1/hour"), clock)
    with TestClient(app, base_url="http://localhost") as browser:
        assert browser.get("/").status_code == 200
        refused = browser.get("/")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert "ES_RATE_LIMIT" in Page(refused).text


def test_a_crash_is_a_page_too(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says where more is told, and the error goes on to the server's log."""

    def crash(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("embedding_studio.pages.views.tasks.get_task", crash)
    with pytest.raises(ZeroDivisionError):
        browser.get("/tasks/t")
    quiet = TestClient(browser.app, base_url="http://localhost", raise_server_exceptions=False)
    answer = quiet.get("/tasks/t")
    assert answer.status_code == 500
    assert "the log of the API has it" in Page(answer).text
    assert "secret" not in answer.text


def test_a_fresh_start_forgets_former_trials(browser: TestClient, store: Store, ids: Ids) -> None:
    """A task that goes on keeps its trials; one that begins anew has none."""
    store.tasks.cancel(ids.at_work, START)
    later = START + timedelta(hours=1)
    store.tasks.restart(ids.at_work, later)
    assert "polyline" in browser.get(f"/tasks/{ids.at_work}").text
    store.tasks.cancel(ids.at_work, later)
    store.tasks.restart(ids.at_work, later + timedelta(hours=1), fresh=True)
    assert "polyline" not in browser.get(f"/tasks/{ids.at_work}").text
