"""Exporting and comparing models, from the shell."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from embedding_studio.items import Item
from embedding_studio.labels import Label
from embedding_studio.store import Store
from tests.cli.conftest import Shell
from tests.serving.conftest import NAME, NOW, register
from tests.training.tiny import WORDS

QUERIES = WORDS[:12]


@pytest.fixture
def two(store: Store, encoders: tuple[Path, Path]) -> None:
    """Two versions, thirty items, and labels that say which item a query means."""
    for folder in encoders:
        register(store, folder)
    store.items.put([Item(f"i-{word}", f"a {word} <b> & more") for word in WORDS])
    labels = [Label(query, f"i-{query}", 2.0) for query in QUERIES]
    others = [Label("moon", "i-tree", 0.5), Label("x", "gone", 2.0)]
    store.labels.put("judged", [*labels, *others], NOW)


def test_models_are_compared_by_labels(shell: Shell, two: None, tmp_path: Path) -> None:
    """Metrics of the second over the first, with intervals, as the gate computes them."""
    page = tmp_path / "page.html"
    words = ["models", "compare", f"{NAME}/1", NAME, "--labels", "judged", "--html", str(page)]
    done = shell(*words, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["models"] == [f"{NAME}/1", f"{NAME}/2"]
    assert (told["queries"], told["items"]) == (12, 30)
    by_name = {one["name"]: one for one in told["metrics"]}
    change = by_name["ndcg_at_10"]
    assert change["delta"] == pytest.approx(change["after"] - change["before"], abs=1e-6)
    assert change["delta_ci95"][0] <= change["delta"] <= change["delta_ci95"][1]
    text = shell(*words).stdout
    assert f"of the first ten of {NAME}/1, {NAME}/2 has" in text
    assert f"{change['delta']:+.4f}" in text


def test_a_model_compared_with_itself_differs_in_nothing(shell: Shell, two: None) -> None:
    """All of its ten are the same, and every difference is 0."""
    words = ["models", "compare", NAME, f"{NAME}@champion", "--labels", "judged", "--json"]
    told = json.loads(shell(*words).stdout)
    assert told["overlap_at_10"] == 1
    assert {(one["delta"], *one["delta_ci95"]) for one in told["metrics"]} == {(0, 0, 0)}


class Read(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_has_both_lists_of_each_query(
    shell: Shell, two: None, encoders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The first ten of both, what is new and where the others were; texts are no markup."""
    page, queries = tmp_path / "page.html", tmp_path / "queries.txt"
    queries.write_text("apple\nmoon\n\nmoon\n")
    words = ["models", "compare", f"{NAME}/1", f"{NAME}/2", "--queries", str(queries)]
    done = shell(*words, "--html", str(page))
    assert done.exit_code == 0, done.output
    read = Read(page.read_text(encoding="utf-8"))
    assert read.tags.count("h2") == 2
    assert read.tags.count("li") == 40
    assert "<b> & more" in read.text
    assert not {"script", "b", "link"} & {*read.tags}
    texts = [f"a {word} <b> & more" for word in WORDS]
    tops: list[list[set[int]]] = []
    for folder in encoders:
        model = SentenceTransformer(str(folder), device="cpu")
        scores = model.encode_query(["apple", "moon"]) @ model.encode_document(texts).T
        tops.append([{*np.argsort(-row)[:10].tolist()} for row in scores])
    new = sum(len(after - before) for before, after in zip(*tops, strict=True))
    assert new > 0
    assert read.text.count("new ") == read.text.count("gone ") == new


@pytest.mark.parametrize("words", [[], ["--labels", "judged", "--queries", "pyproject.toml"]])
def test_either_queries_or_labels_are_named(shell: Shell, two: None, words: list[str]) -> None:
    """Neither and both are refused, before anything is downloaded."""
    done = shell("models", "compare", NAME, NAME, *words)
    assert done.exit_code == 2
    assert "--queries FILE or --labels ID" in done.output


def test_labels_of_no_item_are_refused(shell: Shell, two: None, store: Store) -> None:
    """Labels that name none of the items judge nothing."""
    store.labels.put("others", [Label("moon", "elsewhere", 1.0)], NOW)
    done = shell("models", "compare", NAME, NAME, "--labels", "others")
    assert "no query of the labels 'others'" in str(done.exception)


def test_a_model_is_exported_as_it_is(shell: Shell, two: None, tmp_path: Path) -> None:
    """safetensors are the files themselves; they load, and give the same vectors."""
    out = tmp_path / "out"
    done = shell("models", "export", f"{NAME}/1", "--format", "safetensors", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "on 30 texts: 1.000000 in the mean" in done.output
    SentenceTransformer(str(out), device="cpu")
    again = shell("models", "export", NAME, "--format", "safetensors", "--out", str(out))
    assert "has other files" in str(again.exception)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "least"), [("onnx", 0.99999), ("onnx-int8", 0.9), ("openvino", 0.999)]
)
def test_a_graph_gives_the_models_vectors(
    shell: Shell, two: None, tmp_path: Path, wanted: str, least: float
) -> None:
    """What is written is run, and compared with the original on the items, and by labels."""
    pytest.importorskip("onnxruntime", reason="pip install 'embedding-studio[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'embedding-studio[export]'")
    if wanted == "openvino":
        pytest.importorskip("openvino", reason="pip install 'embedding-studio[export]'")
    out = tmp_path / "out"
    words = ["--format", wanted, "--out", str(out), "--labels", "judged", "--json"]
    done = shell("models", "export", f"{NAME}/1", *words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["min_cosine"] > least
    assert abs(told["ndcg_lost"]) < 0.1
    about = json.loads((out / "embedding_studio.json").read_text())
    assert about["prompts"] == {"query": "search: ", "document": "item: "}
    assert all((out / name).is_file() for name in about["graphs"].values())
    assert (out / "tokenizer.json").is_file()


def test_what_is_not_installed_is_named(
    shell: Shell, two: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that lacks packages is refused at once, with the extra that has them."""
    monkeypatch.setattr("embedding_studio.serving.export.find_spec", lambda name: None)
    done = shell("models", "export", NAME, "--format", "openvino", "--out", str(tmp_path / "out"))
    assert "embedding-studio[export]" in str(done.exception)


def test_a_model_is_shared_and_taken_back(
    shell: Shell, store: Store, encoders: tuple[Path, Path]
) -> None:
    """Each says with whom it is shared; what another project shares is listed by `owner:name`, and
    shown and downloaded by it."""
    acme = store.in_project("acme")
    register(acme, encoders[0])
    acme.models.update(NAME, lambda model: model.shared("default", "ann", NOW))
    (listed,) = json.loads(shell("models", "list", "--json").stdout)
    assert (listed["name"], listed["owner"]) == (f"acme:{NAME}", "acme")
    shown = shell("models", "show", f"acme:{NAME}@champion").stdout
    assert f"acme:{NAME}/1" in shown
    refused = shell("models", "delete", f"acme:{NAME}/1")
    assert refused.exit_code == 1
    register(store, encoders[1])
    assert "is shared with books" in shell("models", "share", NAME, "books").stdout
    assert "is shared with books" in shell("models", "show", NAME).stdout
    told = json.loads(shell("models", "take-back", NAME, "books", "--json").stdout)
    assert told["shared_with"] == []
    words = ["models", "compare", f"acme:{NAME}", f"{NAME}/1", "--labels", "judged", "--json"]
    store.items.put([Item(f"i-{word}", f"a {word}") for word in WORDS])
    store.labels.put("judged", [Label(query, f"i-{query}", 2.0) for query in QUERIES], NOW)
    assert json.loads(shell(*words).stdout)["models"] == [f"acme:{NAME}/1", f"{NAME}/1"]
