"""A page that posts clicks from the browser: what it asks first, and what it may read."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.errors import ConfigurationError
from embedding_studio.keys import Scope, make_key
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from tests.api.samples import START, Clock, session_json

SHOP = "https://shop.example"
PATH = "/clickstream/session"
MB = 1024 * 1024


def open_api(store: Store, settings: Settings, origins: str | None, **more: Any) -> TestClient:
    app = create_app(store, settings.replaced(cors_origins=origins, **more), Clock())
    return TestClient(app, base_url="http://localhost/api/v1")


@pytest.fixture
def key(store: Store) -> str:
    """A key that may post clicks, as a page would carry."""
    key, text = make_key("page", [Scope.INGEST], "default", START)
    store.keys.add(key)
    return text


@pytest.fixture
def api(store: Store, settings: Settings, key: str) -> Iterator[TestClient]:
    with open_api(store, settings, f"{SHOP}, http://localhost:3000/", rate_limit="8/hour") as api:
        yield api


def preflight(
    api: TestClient, origin: str = SHOP, headers: str = "authorization,content-type"
) -> Any:
    """Ask what a browser asks before it posts JSON with a key: without the key."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": headers,
    }
    return api.options(PATH, headers=asked)


def post(api: TestClient, key: str, origin: str = SHOP, **more: Any) -> Any:
    headers = {"Origin": origin, "Authorization": f"Bearer {key}"}
    return api.post(PATH, headers=headers, **(more or {"json": session_json()}))


@pytest.mark.parametrize("headers", ["authorization,content-type", "content-type,x-api-key"])
def test_a_page_posts_a_session(api: TestClient, key: str, headers: str) -> None:
    """The preflight passes without a key and names what the post needs; the post carries a key,
    and the page may read its answer."""
    allowed = preflight(api, headers=headers)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == SHOP
    assert "POST" in allowed.headers["access-control-allow-methods"]
    named = allowed.headers["access-control-allow-headers"].lower()
    assert set(headers.split(",")) <= set(named.replace(" ", "").split(","))
    assert "access-control-allow-credentials" not in allowed.headers
    answer = post(api, key)
    assert answer.json()["status"] == "created"
    assert answer.headers["access-control-allow-origin"] == SHOP
    assert "Origin" in answer.headers["vary"]


def test_a_page_reads_refusals(api: TestClient, key: str) -> None:
    """401, 403, 413, 422, 404 and 429 carry the header without which the page saw a network error,
    and Retry-After may be read."""
    read = {"Origin": SHOP, "Authorization": f"Bearer {key}"}
    answers = [
        post(api, "es_wrong"),
        api.get(f"{PATH}?session_id=s", headers=read),
        post(api, key, content=b"x" * (17 * MB)),
        post(api, key, json={"session_id": ""}),
        api.get("/no-such-route", headers=read),
        *(post(api, key) for _ in range(5)),
    ]
    assert [answer.status_code for answer in answers[:5]] == [401, 403, 413, 422, 404]
    assert answers[-1].status_code == 429
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == SHOP
        assert "Retry-After" in answer.headers["access-control-expose-headers"]


def test_preflights_are_not_counted(api: TestClient, key: str) -> None:
    """They spend nobody's rate, and are told to be remembered."""
    for _ in range(20):
        assert int(preflight(api).headers["access-control-max-age"]) >= 60
    assert post(api, key).status_code == 200


def test_other_pages_are_refused(api: TestClient, key: str) -> None:
    """A page of another origin gets no leave, neither before the post nor with its answer."""
    for origin in ("https://evil.example", "https://shop.example.evil.example", "null"):
        assert "access-control-allow-origin" not in preflight(api, origin).headers
        assert "access-control-allow-origin" not in post(api, key, origin).headers
    for origin in (SHOP, "http://localhost:3000"):
        assert preflight(api, origin).headers["access-control-allow-origin"] == origin


def test_by_default_no_page_may_call(store: Store, settings: Settings, key: str) -> None:
    """Without the setting, nothing is answered to a preflight but that it takes a key."""
    with open_api(store, settings, None) as api:
        assert preflight(api).status_code == 401
        assert "access-control-allow-origin" not in post(api, key).headers


def test_any_page_may_call_where_that_is_said(store: Store, settings: Settings, key: str) -> None:
    """A star allows every origin."""
    with open_api(store, settings, "*") as api:
        assert preflight(api).headers["access-control-allow-origin"] == "*"
        assert post(api, key).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "wrong", ["shop.example", "https://shop.example/path", "https://Shop.example", "ftp://a", "[]"]
)
def test_what_is_no_origin_is_refused(store: Store, settings: Settings, wrong: str) -> None:
    """It is a ConfigurationError that names the setting, when the API starts."""
    with pytest.raises(ConfigurationError, match="ES_CORS_ORIGINS"):
        open_api(store, settings, wrong)
