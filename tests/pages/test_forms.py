"""What may be done on the page, by whom, and which forms are refused."""

from collections.abc import Callable
from datetime import timedelta
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from embedding_studio.keys import SIGN_IN_LASTS, Scope, make_key
from embedding_studio.store import Store
from embedding_studio.tasks import TaskStatus
from tests.api.samples import METHOD, START, Clock
from tests.pages.reading import Page, look, submit
from tests.pages.samples import Ids

MODEL = f"/models/{quote(METHOD)}"
Open = Callable[..., TestClient]


def add_key(store: Store, *scopes: Scope) -> tuple[str, str]:
    """Return a new key's id and its text."""
    key, text = make_key("Ann's", scopes or [Scope.READ, Scope.TUNE], "default", START)
    store.keys.add(key)
    return key.id, text


def sign_in(browser: TestClient, key: str, path: str = "/sign-in") -> None:
    answer = submit(browser, path, "/sign-in", key=key)
    assert answer.status_code == 303, answer.text


def test_a_task_is_stopped_canceled_and_restarted(
    browser: TestClient, store: Store, ids: Ids, clock: Clock
) -> None:
    """By forms, each of which leads back to the task; those that are not legal are not offered."""
    path = f"/tasks/{ids.at_work}"
    answer = submit(browser, path, f"{path}/stop")
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    assert store.tasks.get(ids.at_work).status is TaskStatus.STOPPING
    assert f"{path}/stop" not in look(browser, path).forms
    submit(browser, path, f"{path}/cancel")
    assert store.tasks.get(ids.at_work).status is TaskStatus.CANCELED
    clock.now += timedelta(hours=1)
    submit(browser, path, f"{path}/restart")
    assert store.tasks.get(ids.at_work).status is TaskStatus.PENDING


def test_a_done_search_goes_on(browser: TestClient, store: Store, ids: Ids) -> None:
    """With more trials than it had, which its page asks for."""
    path = f"/tasks/{ids.done}"
    for trials in ("many", "0", "3"):
        assert submit(browser, path, f"{path}/restart", max_trials=trials).status_code in (409, 422)
    answer = submit(browser, path, f"{path}/restart", max_trials="20")
    assert answer.headers["location"] == path
    task = store.tasks.get(ids.done)
    assert (task.status, task.budget.max_trials) == (TaskStatus.PENDING, 20)


def test_a_batch_is_released_and_learnt_from(browser: TestClient, store: Store, ids: Ids) -> None:
    """The form of the batch that collects releases it, and a second press releases no other; a task
    is asked for by its method."""
    form = look(browser, "/batches").forms["/batches/release"]
    first, second = (browser.post("/batches/release", data=form.fields) for _ in range(2))
    assert first.status_code == 303
    assert first.headers["location"] == second.headers["location"] != f"/batches/{ids.released}"
    assert store.clickstream.collecting_batch() is None
    batch_id = first.headers["location"].rpartition("/")[2]
    form = look(browser, "/").forms["/tasks"]
    wanted = {**form.fields, "fine_tuning_method": METHOD, "max_trials": "4", "batch_id": batch_id}
    first, second = (browser.post("/tasks", data=wanted) for _ in range(2))
    assert first.headers["location"] == second.headers["location"]
    task = store.tasks.get(first.headers["location"].rpartition("/")[2])
    assert (task.batch_id, task.budget.max_trials) == (batch_id, 4)
    refused = browser.post("/tasks", data={**wanted, "max_trials": "many"})
    assert refused.status_code == 422
    assert "max_trials" in Page(refused).text


def test_a_model_is_promoted_and_rolled_back(browser: TestClient, store: Store, ids: Ids) -> None:
    """The history says who did and why; a form that is older than another's decision is refused."""
    stale = look(browser, MODEL).forms[f"{MODEL}/promote"].fields
    answer = submit(browser, MODEL, f"{MODEL}/rollback", reason="fewer orders")
    assert (answer.status_code, answer.headers["location"]) == (303, MODEL)
    page = look(browser, MODEL)
    assert "Version 2 is champion" in page.text
    assert "rolled back somebody without a key fewer orders" in page.text
    refused = browser.post(f"{MODEL}/promote", data={**stale, "version": "1"})
    assert refused.status_code == 409
    assert "not version 3" in Page(refused).text
    submit(browser, MODEL, f"{MODEL}/promote", version="3")
    path = f"/tasks/{ids.done}"
    submit(browser, path, f"{MODEL}/promote", reason="reads better")
    model = store.models.find(METHOD)
    assert model is not None
    assert (model.champion, model.wanted and model.wanted.task_id) == (3, ids.done)
    assert f"The model of task {ids.done} becomes champion once" in look(browser, MODEL).text


def actions(ids: Ids) -> dict[str, str]:
    """Return each action with a page that has its form."""
    task = f"/tasks/{ids.at_work}"
    return {
        f"{task}/stop": task,
        f"{task}/cancel": task,
        f"/tasks/{ids.failed}/restart": f"/tasks/{ids.failed}",
        "/tasks": "/",
        "/batches/release": "/batches",
        f"{MODEL}/promote": MODEL,
        f"{MODEL}/rollback": MODEL,
    }


def everything(store: Store) -> list[object]:
    found = store.clickstream.collecting_batch()
    return [store.tasks.page(), store.models.find(METHOD), found and found.batch_id]


@pytest.mark.parametrize("how", ["no token", "wrong token", "no cookie", "another site"])
def test_a_form_of_another_site_is_refused(
    open_browser: Open, store: Store, ids: Ids, how: str
) -> None:
    """Without the token of this browser's pages nothing is done, and with it neither where the
    browser says that another site sent it."""
    browser, before = open_browser(), everything(store)
    for action, path in actions(ids).items():
        fields = look(browser, path).forms[action].fields
        headers = {}
        if how == "no token":
            del fields["form_token"]
        elif how == "wrong token":
            fields["form_token"] = look(open_browser(), path).forms[action].fields["form_token"]
        elif how == "no cookie":
            browser.cookies.clear()
        else:
            headers["sec-fetch-site"] = "same-site"  # another port of this host, say
        refused = browser.post(action, data=fields, headers=headers)
        assert refused.status_code == 403, action
        assert "was not sent by a page of this API" in Page(refused).text
    assert everything(store) == before


def test_what_is_no_form_is_refused(browser: TestClient, ids: Ids) -> None:
    """Bytes that cannot be read are no form, and say nothing of a token."""
    look(browser, "/")
    assert browser.post("/batches/release", content=b"\xff=\xff").status_code == 400
    assert browser.post("/batches/release", content=b"").status_code == 403
    large = browser.post("/sign-in", content=b"key=" + b"x" * 20_000)
    assert large.status_code == 413
    assert "at most 16384 bytes" in Page(large).text


def test_a_key_opens_the_page(browser: TestClient, store: Store, ids: Ids) -> None:
    """Whoever has not signed in is led to the form, and from there to what he asked for; the
    cookie is no script's, no other site's, and not the key."""
    key_id, text = add_key(store)
    answer = browser.get(f"/tasks/{ids.done}?skip=0")
    assert answer.status_code == 303
    path = answer.headers["location"]
    assert path == f"/sign-in?next=%2Ftasks%2F{ids.done}%3Fskip%3D0"
    answer = submit(browser, path, "/sign-in", key=f" {text} ")
    assert answer.headers["location"] == f"/tasks/{ids.done}?skip=0"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"es_page={key_id}.")
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"} < set(cookie.split("; "))
    assert "Secure" not in cookie
    secret = text.rpartition("_")[2]
    page = browser.get(answer.headers["location"])
    assert page.status_code == 200
    assert secret not in cookie + page.text
    assert "Sign out of key Ann's" in Page(page).text


def test_over_https_the_cookie_stays_there(open_browser: Open, store: Store) -> None:
    """It is Secure, and of a name that no other host can set."""
    _, text = add_key(store)
    browser = open_browser("https://studio")
    answer = submit(browser, "/sign-in", "/sign-in", key=text)
    assert answer.headers["set-cookie"].startswith("__Host-es_page=")
    assert "Secure" in answer.headers["set-cookie"].split("; ")
    assert browser.get("/").status_code == 200


def test_the_cookie_is_no_key_to_the_api(browser: TestClient, store: Store, ids: Ids) -> None:
    """The JSON API does not look at it, and the page looks at no other proof."""
    _, text = add_key(store)
    sign_in(browser, text)
    assert browser.get("/").status_code == 200
    assert browser.get("/api/v1/fine-tuning/task").status_code == 401
    assert browser.put(f"/api/v1/fine-tuning/task/{ids.at_work}/stop").status_code == 401
    browser.cookies.clear()
    answer = browser.get("/", headers={"Authorization": f"Bearer {text}"})
    assert answer.status_code == 303


@pytest.mark.parametrize("key", ["", "es_wrong", f"es_{'0' * 12}_{'a' * 43}"])
def test_a_wrong_key_signs_nobody_in(browser: TestClient, store: Store, key: str) -> None:
    """The form is shown again with what is wrong, and no sign-in."""
    add_key(store)
    answer = submit(browser, "/sign-in", "/sign-in", key=key)
    assert answer.status_code == 401
    assert "This is no valid key" in Page(answer).text
    assert "es_page" not in answer.headers.get("set-cookie", "")
    assert browser.get("/").status_code == 303


def test_a_sign_in_ends(open_browser: Open, store: Store, clock: Clock) -> None:
    """By signing out, after half a day, and within five seconds of the key's end."""
    key_id, text = add_key(store)
    _, other = add_key(store)
    browser, late, revoked = open_browser(), open_browser(), open_browser()
    for one, key in ((browser, text), (late, other), (revoked, text)):
        sign_in(one, key)
    answer = submit(browser, "/", "/sign-out")
    assert answer.headers["location"] == "/sign-in"
    assert browser.get("/").status_code == 303
    store.keys.end(key_id, revoked_at=START)
    clock.now += timedelta(seconds=5)
    assert revoked.get("/").status_code == 303
    assert late.get("/").status_code == 200
    clock.now = START + SIGN_IN_LASTS
    assert late.get("/").status_code == 303


def test_a_changed_sign_in_is_none(browser: TestClient, store: Store) -> None:
    """Neither a later end nor another key's id can be written into it."""
    (first, text), (other, _) = add_key(store), add_key(store, Scope.ADMIN)
    sign_in(browser, text)
    cookie = browser.cookies["es_page"]
    key_id, ends_at, nonce, signature = cookie.split(".")
    assert key_id == first
    for forged in (
        f"{other}.{ends_at}.{nonce}.{signature}",
        f"{key_id}.{int(ends_at) + 1}.{nonce}.{signature}",
        f"{key_id}.{ends_at}.{nonce[::-1]}.{signature}",
        f"{key_id}.{ends_at}.{nonce}.{'0' * 64}",
    ):
        assert browser.get("/", headers={"cookie": f"es_page={forged}"}).status_code == 303


@pytest.mark.parametrize(
    "path", ["https://evil.example/", "//evil.example", "/\\evil.example", "/api/v1/ping", "x", ""]
)
def test_the_form_leads_to_no_other_site(browser: TestClient, store: Store, path: str) -> None:
    """Whatever `next` says, a sign-in ends at a page of ours."""
    _, text = add_key(store)
    answer = submit(browser, f"/sign-in?next={quote(path)}", "/sign-in", key=text)
    assert answer.headers["location"] == "/"


def test_who_comes_from_elsewhere_keeps_his_sign_in(browser: TestClient, store: Store) -> None:
    """A link in a chat shows no cookie: the answer sets none, and leads on as a page of ours."""
    _, text = add_key(store)
    sign_in(browser, text)
    answer = browser.get("/models?a=b", headers={"sec-fetch-site": "cross-site", "cookie": ""})
    assert answer.status_code == 401
    (refresh,) = [one for one in Page(answer).named("meta") if one.get("http-equiv") == "refresh"]
    assert refresh["content"] == "0; url=/models?a=b"
    assert "es_page" not in answer.headers.get("set-cookie", "")
    assert browser.get("/models").status_code == 200


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_shows_its_forms_and_no_others(
    browser: TestClient, store: Store, ids: Ids, scope: Scope
) -> None:
    """Who may not read sees no page; who may only read sees no form, and none that he makes up is
    taken; the details of health are for admins."""
    _, text = add_key(store, scope)
    sign_in(browser, text)
    before = everything(store)
    for action, path in actions(ids).items():
        answer = browser.get(path)
        if scope is Scope.ADMIN:
            assert action in Page(answer).forms
            continue
        assert answer.status_code == (200 if scope is Scope.READ else 403)
        page = Page(answer)
        assert set(page.forms) == {"/sign-out"}
        if scope is not Scope.TUNE:
            token = page.forms["/sign-out"].fields
            refused = browser.post(action, data=token)
            assert refused.status_code == 403
            assert "takes a key with the scope tune" in Page(refused).text
    assert everything(store) == before
    if scope in (Scope.ADMIN, Scope.READ):
        told = "does not exist yet" in look(browser, "/health").text
        assert told is (scope is Scope.ADMIN)


def test_without_keys_the_page_is_open(browser: TestClient, ids: Ids) -> None:
    """As the API is; there is nobody to sign out, and the form for a key leads on."""
    assert "/sign-out" not in look(browser, "/").forms
    answer = submit(browser, "/sign-in?next=/models", "/sign-in", key="whatever")
    assert answer.headers["location"] == "/models"
