"""The page for people who come from the reference is true, as far as this side can tell."""

import re
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.clickstream import image_of
from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.methods import FineTuningMethod
from embedding_studio.settings import Settings
from embedding_studio.store import open_store
from embedding_studio.training import method

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")


def test_the_settings_on_the_page_exist() -> None:
    """Every ES_ name in the right column, and in the text, is a setting of ours."""
    former = {"ES_PLUGINS_PATH"}
    known = {f"ES_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bES_[A-Z_]+", PAGE)) - former <= known


def test_the_calls_on_the_page_exist(settings: Settings) -> None:
    """Every call in the table is a route of ours, by its verb."""
    store = open_store(settings.resolved_store_url)
    paths = create_app(store, settings).openapi()["paths"]
    store.close()
    routes = {(verb.upper(), path) for path, verbs in paths.items() for verb in verbs}
    named = re.findall(r"^\| `(GET|POST|PUT) (/[^`]*)`", PAGE, flags=re.MULTILINE)
    assert len(named) >= 15
    for verb, path in named:
        assert (verb, f"/api/v1{path.replace('{id}', '{task_id}')}") in routes


def test_what_the_page_says_of_plugins_exists() -> None:
    """The methods that it names are bundled, and what plugins are said to define, methods have."""
    files = [*(ROOT / "plugins").glob("*.py"), Path(method.__file__)]
    bundled = "".join(file.read_text() for file in files)
    for name in ("Default Fine Tuning Method", "CLIP Fine Tuning Method"):
        assert f"`{name}`" in PAGE
        assert f'"{name}"' in bundled
    table = PAGE[PAGE.index("## Plugins") :]
    own = ["load_initial_model", "prepare", "load_data", "train", "suggest", "save", "load"]
    attributes = ["meta", "main_metric", "direction", "budget", "validation_share", "test_share"]
    for name in own + attributes:
        assert f"`{name}" in table
        assert hasattr(FineTuningMethod, name) or name in FineTuningMethod.__annotations__
    for name in ("item_image", "item_text"):
        assert f"`{name}(" in table
        assert f"def {name}(" in bundled


def test_the_demos_clickstream_is_posted(settings: Settings) -> None:
    """The page's code posts sessions as the demo's file has them; images are found in S3."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    items = [{"bucket": "a-bucket", "file": f"items/{number}.jpg"} for number in range(3)]
    recorded = {
        "query": {"text": "a harbor"},
        "results": [
            {"item": item, "rank": 0.5, "is_click": place == 1} for place, item in enumerate(items)
        ],
    }
    store = open_store(settings.resolved_store_url)
    with TestClient(create_app(store, settings), base_url="http://localhost/api/v1") as api:

        class Client(EmbeddingStudioClient):
            def _call(self, method: str, path: str, fine: int = 200, **content: Any) -> Any:
                return api.request(method, path, **content)

        client = Client("http://localhost")
        for _ in range(2):
            namespace["post_clickstream"](client, [recorded, recorded])
        batch = api.get("/clickstream/internal/batch").json()
    assert batch["session_count"] == 2
    assert not any(batch["counts"].values())
    session = store.clickstream.get("1")
    store.close()
    assert session.clicked_ids() == {"items/1.jpg"}
    assert image_of(session.search_results[2]) == "s3://a-bucket/items/2.jpg"
