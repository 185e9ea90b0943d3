"""Vectors over HTTP, as OpenAI's clients ask for them."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sentence_transformers import SentenceTransformer

from embedding_studio.keys import Scope, make_key
from embedding_studio.models import ChampionMove, MoveKind
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from tests.serving.conftest import NAME, NOW, register
from tests.waiting import wait_until

TEXTS = ["winter jacket", "a lamp", "a much longer text about a window in a house by the river"]


def ask(serve: TestClient, **body: Any) -> Any:
    answer = serve.post("/v1/embeddings", json={"model": NAME, "input": TEXTS, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(found: Any) -> Any:
    assert [entry["index"] for entry in found["data"]] == [*range(len(found["data"]))]
    return np.array([entry["embedding"] for entry in found["data"]])


def refusal(serve: TestClient, **body: Any) -> tuple[int, Any]:
    answer = serve.post("/v1/embeddings", json={"model": NAME, "input": TEXTS, **body})
    return answer.status_code, answer.json()["error"]


def test_vectors_are_those_that_the_saved_model_gives(
    serve: TestClient, encoders: tuple[Path, Path]
) -> None:
    """Documents by default, queries when asked for, each with the model's own prompt, in the order
    in which they were sent."""
    model = SentenceTransformer(str(encoders[0]), device="cpu")
    items, queries = model.encode_document(TEXTS), model.encode_query(TEXTS)
    assert np.abs(items - queries).max() > 1e-3
    np.testing.assert_allclose(vectors(ask(serve)), items, atol=1e-5)
    np.testing.assert_allclose(vectors(ask(serve, input_type="document")), items, atol=1e-5)
    np.testing.assert_allclose(vectors(ask(serve, input_type="query")), queries, atol=1e-5)
    np.testing.assert_allclose(vectors(ask(serve, input=TEXTS[1])), items[1:2], atol=1e-5)


def test_an_answer_names_the_version(serve: TestClient) -> None:
    """Whatever it was asked by, the answer and its headers say which version the vectors are of."""
    for name in (NAME, f"{NAME}@champion", f"{NAME}/1"):
        answer = serve.post("/v1/embeddings", json={"model": name, "input": "a lamp"})
        assert answer.json()["model"] == f"{NAME}/1"
        assert answer.headers["X-Model"] == "Shop%20search/1"
        assert answer.headers["X-Model-Version"] == "1"


def test_tokens_are_counted(serve: TestClient, encoders: tuple[Path, Path]) -> None:
    """Usage has the tokens that the model reads, those of the prompt and the ends too."""
    model = SentenceTransformer(str(encoders[0]), device="cpu")
    ids = model.tokenizer([f"item: {text}" for text in TEXTS])["input_ids"]
    expected = sum(map(len, ids))
    assert ask(serve)["usage"] == {"prompt_tokens": expected, "total_tokens": expected}


def test_vectors_in_base64_are_the_same(serve: TestClient) -> None:
    """OpenAI's own client asks for base64: float32, little-endian."""
    found = ask(serve, encoding_format="base64")["data"]
    read = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in found]
    np.testing.assert_array_equal(np.array(read), vectors(ask(serve)).astype(np.float32))


def test_vectors_are_cut_to_dimensions(serve: TestClient) -> None:
    """The first ones stay, with length 1 again; more than there are is refused."""
    whole, part = vectors(ask(serve)), vectors(ask(serve, dimensions=8))
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(part, expected, atol=1e-6)
    status, error = refusal(serve, dimensions=33)
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert "33 are more than the 32" in error["message"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"input": [1, 2, 3]}, "tokens are not taken"),
        ({"input": [[1, 2], [3]]}, "tokens are not taken"),
        ({"input": []}, "has 0 texts"),
        ({"input": ["a"] * 2049}, "2049 texts: one request takes 1 to 2048"),
        ({"input": ["a", " "]}, "empty texts, at 1"),
        ({"input": {"a": 1}}, "no text and no list of texts"),
        ({"input_type": "passage"}, "input_type"),
        ({"dimensions": 0}, "dimensions"),
        ({"input_typ": "query"}, "Did you mean input_type?"),
        ({"input": "x" * 4097, "input_type": "query"}, "ES_MAX_QUERY_CHARS"),
        ({"input": "x" * 32769}, "ES_MAX_META_BYTES"),
        ({"model": f"{NAME}/newest"}, "is no version"),
    ],
)
def test_what_cannot_be_is_refused_in_openais_form(
    serve: TestClient, body: dict[str, Any], told: str
) -> None:
    """A wrong request is a 400 that says what is wrong with it."""
    status, error = refusal(serve, **body)
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert told in error["message"]


def test_models_that_are_not_there_are_told(serve: TestClient, store: Store) -> None:
    """An unknown name or version is a 404 with OpenAI's code for it."""
    for name in ("other", f"{NAME}/7", f"{NAME}@7"):
        status, error = refusal(serve, model=name)
        assert (status, error["code"]) == (404, "model_not_found")


def test_a_model_that_is_no_encoder_is_refused(
    serve: TestClient, store: Store, tmp_path: Path
) -> None:
    """What a plugin saved in a form of its own is told to be none, and others are served on."""
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "numbers.json").write_text("[1]")
    register(store, tmp_path / "odd", "Odd")
    status, error = refusal(serve, model="Odd")
    assert status == 400
    assert "'Odd' cannot be served" in error["message"]
    ask(serve)


def test_a_new_champion_answers_once_it_is_loaded(
    serve: TestClient, store: Store, encoders: tuple[Path, Path]
) -> None:
    """No request fails meanwhile; the former one is still to be had by its number."""
    before = vectors(ask(serve))
    register(store, encoders[1])
    wait_until(lambda: ask(serve)["model"] == f"{NAME}/2")
    new = SentenceTransformer(str(encoders[1]), device="cpu").encode_document(TEXTS)
    np.testing.assert_allclose(vectors(ask(serve)), new, atol=1e-5)
    np.testing.assert_allclose(vectors(ask(serve, model=f"{NAME}/1")), before, atol=1e-6)


def test_a_former_champion_is_let_go(
    serve: TestClient, store: Store, encoders: tuple[Path, Path]
) -> None:
    """Only what somebody asked for by its number stays in memory beside the new one."""
    models = serve.app.state.models  # type: ignore[attr-defined]
    register(store, encoders[1])
    wait_until(lambda: models.references == [f"{NAME}/2"])
    ask(serve, model=f"{NAME}/2")
    register(store, encoders[0])
    wait_until(lambda: f"{NAME}/3" in models.references)
    assert models.references == [f"{NAME}/2", f"{NAME}/3"]


def test_a_champion_that_cannot_be_loaded_replaces_nothing(
    serve: TestClient, store: Store, encoders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The former one answers on."""
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"nothing")
    register(store, tmp_path / "damaged")
    models = serve.app.state.models  # type: ignore[attr-defined]
    wait_until(lambda: models.failures == [f"{NAME}/2"])
    assert ask(serve)["model"] == f"{NAME}/1"


def test_no_more_models_are_in_memory_than_there_is_room_for(
    store: Store, settings: Settings, encoders: tuple[Path, Path]
) -> None:
    """The one that was not asked for the longest goes, and comes again when it is asked for."""
    from embedding_studio.serving.app import create_app

    for name in ("a", "b", "c"):
        register(store, encoders[0], name)
    app = create_app(store, settings.replaced(serve_models=2))
    with TestClient(app, base_url="http://localhost") as serve:
        for name in ("a", "b", "c", "a"):
            ask(serve, model=name)
            assert len(app.state.models.references) <= 2
        assert app.state.models.references == ["a/1", "c/1"]
    assert len([*(settings.data_folder / "serving").iterdir()]) == 1  # all have the same files


def test_files_that_are_not_those_that_were_saved_are_refused(
    store: Store, settings: Settings, encoders: tuple[Path, Path], tmp_path: Path
) -> None:
    """A damaged model is told of, and not served."""
    import shutil

    from embedding_studio.serving.app import create_app

    folder = Path(shutil.copytree(encoders[0], tmp_path / "copy"))
    register(store, folder)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with TestClient(create_app(store, settings), base_url="http://localhost") as serve:
        status, error = refusal(serve)
    assert status == 400
    assert "is not the one that was saved" in error["message"]


def test_a_shared_model_is_served_until_it_is_taken_back(serve: TestClient, store: Store) -> None:
    """By `owner:name`, which the answer repeats, with the vectors that the owner gets; in memory or
    not, it is 404 from when it is not shared any more."""
    store.models.update(NAME, lambda model: model.shared("books", "ann", NOW))
    headers = {}
    for project in ("default", "books"):
        key, text = make_key("a key", [Scope.READ], project, NOW)
        store.keys.add(key)
        headers[project] = {"Authorization": f"Bearer {text}"}

    def read(path: str) -> Any:
        return serve.get(f"/v1/{path}", headers=headers["books"])

    def answer(name: str, project: str = "books") -> Any:
        asked = {"model": name, "input": TEXTS}
        return serve.post("/v1/embeddings", json=asked, headers=headers[project])

    listed = [entry["id"] for entry in read("models").json()["data"]]
    assert listed == [f"default:{NAME}", f"default:{NAME}/1"]
    assert read(f"models/default:{NAME}").json()["version"] == 1
    expected = vectors(answer(NAME, "default").json())
    for name in (f"default:{NAME}", f"default:{NAME}@champion", f"default:{NAME}/1"):
        given = answer(name)
        assert given.json()["model"] == f"default:{NAME}/1"
        assert given.headers["X-Model"] == "default%3AShop%20search/1"
        np.testing.assert_array_equal(vectors(given.json()), expected)
    assert answer(NAME).status_code == 404
    assert len(serve.app.state.models.references) == 1  # type: ignore[attr-defined]
    store.models.update(NAME, lambda model: model.taken_back("books", "ann", NOW))
    assert answer(f"default:{NAME}/1").status_code == 404
    assert read(f"models/default:{NAME}").status_code == 404
    assert read("models").json()["data"] == []


def test_a_foreign_name_gets_no_vectors(serve: TestClient) -> None:
    """Without keys this machine's own names are answered alone, as at the API."""
    asked = {"model": NAME, "input": TEXTS}
    refused = serve.post("/v1/embeddings", json=asked, headers={"Host": "evil.example"})
    assert refused.status_code == 421
    assert "not 'evil.example'" in refused.json()["error"]["message"]


def test_models_are_listed(serve: TestClient, store: Store, encoders: tuple[Path, Path]) -> None:
    """A model by its name, and each version; one of them can be read by any of its names."""
    register(store, encoders[1])
    entries = serve.get("/v1/models").json()["data"]
    told = [(entry["id"], entry["version"], entry["is_champion"]) for entry in entries]
    assert told == [(NAME, 2, True), (f"{NAME}/1", 1, False), (f"{NAME}/2", 2, True)]
    assert {entry["dimensions"] for entry in entries} == {32}
    found = serve.get(f"/v1/models/{NAME}@champion").json()
    assert (found["id"], found["version"]) == (f"{NAME}@champion", 2)
    assert serve.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_keys_and_projects_count_here_as_in_the_api(serve: TestClient, store: Store) -> None:
    """Once there are keys it takes one with the scope read, and it opens its own project alone."""

    def made(scope: Scope, project: str = "default") -> str:
        key, text = make_key("k", [scope], project, NOW)
        store.keys.add(key)
        return text

    def status(text: str) -> tuple[int, str | None]:
        headers = {"Authorization": f"Bearer {text}"}
        body = {"model": NAME, "input": "a"}
        answer = serve.post("/v1/embeddings", json=body, headers=headers)
        error = answer.json().get("error", {})
        return answer.status_code, error.get("code")

    ingest, read, other = made(Scope.INGEST), made(Scope.READ), made(Scope.READ, "other")
    wait_until(lambda: refusal(serve)[0] == 401)
    assert refusal(serve)[1]["code"] == "invalid_api_key"
    assert status(ingest) == (403, "insufficient_scope")
    assert status(read) == (200, None)
    assert status(other) == (404, "model_not_found")
    assert serve.get("/health").status_code == 200


def test_a_store_that_does_not_answer_ends_nothing(
    serve: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in memory is served on, health tells of it, and a move is followed afterwards."""
    from embedding_studio.errors import StoreUnavailable

    def fail(self: object, name: str) -> None:
        raise StoreUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr("embedding_studio.store.models.Models.find", fail)
        wait_until(lambda: serve.get("/health").json()["store"] == "unavailable")
        assert ask(serve)["model"] == f"{NAME}/1"
    wait_until(lambda: serve.get("/health").json()["store"] == "ok")


def test_a_rollback_is_followed(
    serve: TestClient, store: Store, encoders: tuple[Path, Path]
) -> None:
    """The version before answers again."""
    register(store, encoders[1])
    wait_until(lambda: ask(serve)["model"] == f"{NAME}/2")
    move = ChampionMove(MoveKind.ROLLED_BACK, NOW, 2, 1, "a test", "")
    store.models.update(NAME, lambda model: model.moved(move))
    wait_until(lambda: ask(serve)["model"] == f"{NAME}/1")
