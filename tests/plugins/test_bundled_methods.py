"""The bundled methods, used as an iteration uses them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import pytest
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from embedding_studio.clickstream import Session, split_by_query
from embedding_studio.demo.corpus import load_corpus
from embedding_studio.demo.searchers import held_out_quality, simulate_sessions
from embedding_studio.errors import MethodError
from embedding_studio.methods import AnyMethod, discover_methods
from embedding_studio.search import Search
from embedding_studio.testing import MethodTestCase
from embedding_studio.testing.bench import Bench
from embedding_studio.tracking.facts import facts_of
from embedding_studio.tracking.files import describe_files
from embedding_studio.training.encoder import load_encoder, split_sides
from tests.training.test_labels import NO_SESSIONS, judged, split
from tests.training.tiny import PACKAGED_MODEL, Reports, searches, write_tiny_model

pytestmark = pytest.mark.slow

PLUGINS = Path(__file__).parents[2] / "plugins"
# the image method has its own tests, with images
QUERY_SIDE = "Query Side Fine Tuning Method"
TRAINER = "Trainer Fine Tuning Method"
NAMES = ["Default Fine Tuning Method", "Linear adapter", QUERY_SIDE]


@pytest.fixture(scope="module")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(params=NAMES)
def method(
    request: pytest.FixtureRequest, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AnyMethod:
    monkeypatch.setenv("ES_INITIAL_MODEL", str(tiny_model_folder))
    return discover_methods(PLUGINS).get(request.param)


def prepared(method: AnyMethod, sessions: Sequence[Session], folder: Path) -> Any:
    folder.mkdir()
    splits = split_by_query(sessions, method.validation_share, method.test_share)
    figures = method.prepare(splits, folder)
    assert figures["train_sessions"] == len(splits.train)
    method.note_start(method.load_initial_model(), folder)
    return method.load_data(folder)


def suggestion(method: AnyMethod, seed: int = 0) -> dict[str, Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return method.suggest(study.ask())


@pytest.mark.quick
def test_all_are_found() -> None:
    """The plugins folder loads without a failure."""
    catalog = discover_methods(PLUGINS)
    assert sorted(catalog.methods) == ["CLIP Fine Tuning Method", *NAMES, TRAINER]
    assert not catalog.failures


@pytest.mark.quick
def test_a_trial_runs_through(method: AnyMethod, tmp_path: Path) -> None:
    """Initial model, data, training, evaluation, saving and loading fit together."""
    data = prepared(method, searches(6000), tmp_path / "data")
    start, saved = tmp_path / "start", tmp_path / "saved"
    for folder in (start, saved):
        folder.mkdir()
    method.save(method.load_initial_model(), start)
    run = Reports()
    model = method.load(start)
    model = method.train(model, suggestion(method), replace(data, test=None), run)
    scores = method.evaluate(model, data.validation)
    method.save(model, saved)
    again = method.evaluate(method.load(saved), data.validation)
    assert np.mean(scores[method.main_metric]) == pytest.approx(
        np.mean(again[method.main_metric]), abs=1e-4
    )
    assert all(method.main_metric in reported for reported in run.scores)
    assert np.asarray(scores[method.main_metric]).shape == (
        np.asarray(method.evaluate(method.load(start), data.validation)[method.main_metric]).shape
    )
    files = {file.suffix for file in saved.rglob("*") if file.is_file()}
    assert files <= {".safetensors", ".json", ".txt", ".md"}


def test_labels_teach_without_clicks(method: AnyMethod, tmp_path: Path) -> None:
    """A trial on labels alone ranks held-out queries better than its start."""
    assert method.learns_from_labels
    labels, folder = split(judged(600)), tmp_path / "data"
    folder.mkdir()
    prepare: Any = method.prepare
    prepare(NO_SESSIONS, folder, labels=labels)
    model = method.load_initial_model()
    assert method.note_start(model, folder) == {}
    data = method.load_data(folder)
    before = method.evaluate(model, data.test)["ndcg_at_10"]
    trained = method.train(model, suggestion(method), replace(data, test=None), Reports())
    after = method.evaluate(trained, data.test)["ndcg_at_10"]
    assert np.shape(before) == np.shape(after)
    assert np.mean(after) > np.mean(before)


def test_what_is_judged_is_explained_by_query(method: AnyMethod, tmp_path: Path) -> None:
    """The start is noted, so that each held-out query judges; those with a probably relevant item
    are told one by one."""
    data = prepared(method, searches(6000), tmp_path / "data")
    model = method.load_initial_model()
    values = np.asarray(method.evaluate(model, data.test)["ndcg_at_10"])
    found = method.explain(model, data.test)
    assert 5 < len(found) <= len(values)
    assert all(0 <= value <= 1 for value in found.values())
    ranked = method.rank(model, data.test)
    assert ranked.keys() == found.keys()
    assert all(0 < len(texts) <= 10 for texts in ranked.values())


def test_metrics_have_names_that_mlflow_takes(method: AnyMethod, tmp_path: Path) -> None:
    """Letters, digits and underscores only."""
    data = prepared(method, searches(6000), tmp_path / "data")
    scores = method.evaluate(method.load_initial_model(), data.validation)
    assert all(name.isidentifier() for name in scores)
    assert {"ndcg_at_10", "mrr_at_10", "recall_at_10", "precision_at_10", "f1_at_10"} <= set(scores)


@pytest.mark.quick
def test_suggestions_are_plain_values(method: AnyMethod) -> None:
    """Every hyperparameter is a str, int, float or bool, so MLflow gives it back as it was."""
    for seed in range(5):
        values = suggestion(method, seed).values()
        assert all(isinstance(value, str | int | float | bool) for value in values)


@pytest.mark.quick
def test_the_default_method_offers_what_people_tune(method: AnyMethod) -> None:
    """The hyperparameters that the documentation promises are there."""
    if method.meta.name == NAMES[0]:
        assert set(suggestion(method)) == {
            "learning_rate",
            "weight_decay",
            "frozen_layers",
            "epochs",
            "batch_size",
            "temperature",
            "negatives_per_click",
        }


@pytest.mark.quick
@pytest.mark.parametrize("name", [NAMES[0], QUERY_SIDE, TRAINER])
def test_the_recommended_set_can_be_drawn(name: str) -> None:
    """So the search of the default method begins with it, and that of the one for queries."""
    method = discover_methods(PLUGINS).get(name)
    search = Search("maximize", seed=0)
    assert method.recommended
    assert search.recommend(method.suggest, method.recommended) == []
    proposed = search.ask(method.suggest)
    assert proposed is not None
    assert proposed[1] == method.recommended


def test_discovering_the_plugins_loads_no_model() -> None:
    """Trial processes fork from where they are discovered: no model read, no Python thread."""
    code = (
        "import threading, pathlib\n"
        "from embedding_studio.methods import discover_methods\n"
        f"catalog = discover_methods(pathlib.Path({str(PLUGINS)!r}))\n"
        "assert len(catalog.methods) == 5, catalog.failures\n"
        "assert threading.active_count() == 1\n"
    )
    environment = {**os.environ, "ES_INITIAL_MODEL": "/nowhere"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_clicks_make_the_real_model_truly_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch on simulated clicks raises nDCG@10 on unasked queries, beyond chance."""
    monkeypatch.setenv("ES_INITIAL_MODEL", str(PACKAGED_MODEL))
    method = discover_methods(PLUGINS).get(NAMES[0])
    corpus = load_corpus()
    model = load_encoder(PACKAGED_MODEL)

    def embeddings() -> tuple[Any, Any]:
        labels = [item.label for item in corpus.items]
        return model.encode(list(corpus.queries)), model.encode(labels)

    queries, items = embeddings()
    before = held_out_quality(corpus, queries, items).ndcg_at_10
    sessions = simulate_sessions(corpus, queries, items, 20_000, 0, datetime.now(UTC))
    usable = [session for session in sessions if not session.is_irrelevant]
    data = prepared(method, usable, tmp_path / "data")
    params = {
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "frozen_layers": 4,
        "epochs": 1,
        "batch_size": 64,
        "temperature": 0.1,
        "negatives_per_click": 1,
    }
    model = method.train(model, params, replace(data, test=None), Reports())
    gained = held_out_quality(corpus, *embeddings()).ndcg_at_10 - before
    assert before.mean() == pytest.approx(0.420, abs=0.001)
    assert gained.mean() > 0.015
    assert gained.mean() > 3 * gained.std() / np.sqrt(len(gained))


def items_sha256(folder: Path) -> str | None:
    return facts_of(folder, tuple(describe_files(folder))).items_sha256


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_linear_adapter_is_served_by_sentence_transformers_alone(
    dtype: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved encodes queries as they were judged and items as the encoder does; it shares
    the encoder's bytes with the data, and its facts say that items keep their vectors. What
    version 0.1 saved still loads."""
    encoder = SentenceTransformer(str(tiny_model_folder)).to(getattr(torch, dtype))
    encoder.save(str(tmp_path / "encoder"), create_model_card=False)
    monkeypatch.setenv("ES_INITIAL_MODEL", str(tmp_path / "encoder"))
    method = discover_methods(PLUGINS).get("Linear adapter")
    data = prepared(method, searches(6000), tmp_path / "data")
    untested = replace(data, test=None)
    model = method.train(method.load_initial_model(), suggestion(method), untested, Reports())
    (saved := tmp_path / "saved").mkdir()
    method.save(model, saved)
    (before := tmp_path / "before").mkdir()
    method.save(method.load_initial_model(), before)
    assert items_sha256(before) == items_sha256(saved) is not None
    served, words = SentenceTransformer(str(saved)), ["word one", "two", "three"]
    vectors = SentenceTransformer(str(tmp_path / "encoder")).encode(words)
    expected = vectors @ model.matrix
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert not np.allclose(expected, vectors, atol=1e-3)
    tolerance = 1e-6 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(served.encode_query(words), expected, atol=tolerance)
    np.testing.assert_array_equal(served.encode_document(words), vectors)
    weights = "model.safetensors"
    assert (saved / weights).samefile(tmp_path / "data" / "encoder" / weights)
    np.testing.assert_array_equal(method.load(saved).matrix, model.matrix)

    (oldest := tmp_path / "oldest").mkdir()
    save_file({"array": model.matrix}, oldest / "arrays.safetensors")
    np.testing.assert_array_equal(method.load(oldest).matrix, model.matrix)


def test_the_adapter_works_on_vectors_as_they_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query's and an item's vector have the encoder's prompts, dimensions and similarity."""
    folder = write_tiny_model(tmp_path / "tiny")
    encoder = SentenceTransformer(
        str(folder),
        device="cpu",
        prompts={"query": "find: ", "document": "text: "},
        truncate_dim=8,
        similarity_fn_name="dot",
    )
    encoder.save(str(tmp_path / "encoder"), create_model_card=False)
    monkeypatch.setenv("ES_INITIAL_MODEL", str(tmp_path / "encoder"))
    method = discover_methods(PLUGINS).get("Linear adapter")
    data = prepared(method, searches(4000), tmp_path / "data")
    lists, vectors = data.train.lists, data.train.vectors
    query, item = lists.queries[0], lists.items[0]
    contents = lists.texts.contents
    assert vectors[query] == pytest.approx(encoder.encode_query(contents[query]), abs=1e-5)
    assert vectors[item] == pytest.approx(encoder.encode_document(contents[item]), abs=1e-5)
    start = method.load_initial_model()
    assert start.matrix.shape == (8, 8)
    tuned = method.train(start, suggestion(method), replace(data, test=None), Reports())
    (saved := tmp_path / "saved").mkdir()
    method.save(tuned, saved)
    served = SentenceTransformer(str(saved), device="cpu")
    expected = vectors[query] @ tuned.matrix
    assert served.encode_query(contents[query]) == pytest.approx(expected, abs=1e-5)
    assert served.encode_document(contents[item]) == pytest.approx(vectors[item], abs=1e-5)
    assert method.load(saved).matrix == pytest.approx(tuned.matrix)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_items_keep_their_vectors_where_only_queries_learn(
    lora_rank: int, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, and the card says so; so does a second iteration, from the first one's model.
    What it costs is the queries' tokens."""
    if lora_rank:
        pytest.importorskip("peft")
    encoder = SentenceTransformer(str(tiny_model_folder), prompts={"query": "find: "})
    encoder.max_seq_length = 16
    encoder.save(str(tmp_path / "encoder"), create_model_card=False)
    monkeypatch.setenv("ES_INITIAL_MODEL", str(tmp_path / "encoder"))
    catalog = discover_methods(PLUGINS)
    method, shared = catalog.get(QUERY_SIDE), catalog.get(NAMES[0])
    monkeypatch.setattr(method, "lora_rank", lora_rank)
    data = replace(prepared(method, searches(6000), tmp_path / "data"), test=None)
    words = ["word one", "two", "three " * 30]
    items, queries = encoder.encode_document(words), encoder.encode_query(words)
    params = suggestion(method) | {"learning_rate": 3e-3, "frozen_layers": 1}
    model = method.load_initial_model()
    (start := tmp_path / "start").mkdir()
    method.save(model, start)
    before = np.mean(method.evaluate(model, data.validation)["ndcg_at_10"])
    for saved in (tmp_path / "first", tmp_path / "second"):
        model = method.train(model, params, data, run := Reports())
        saved.mkdir()
        method.save(model, saved)
        served = SentenceTransformer(str(saved), device="cpu")
        np.testing.assert_array_equal(served.encode_document(words), items)
        assert not np.allclose(served.encode_query(words), queries, atol=1e-3)
        assert served.max_seq_length == 16
        assert served.prompts["query"] == "find: "
        assert "an index of these stays valid" in (saved / "README.md").read_text()
        assert items_sha256(saved) == items_sha256(start) is not None
        model = method.load(saved)
        assert np.mean(method.evaluate(model, data.validation)["ndcg_at_10"]) > before
        estimate, former = (m.estimate_trained_tokens(params, data) for m in (method, shared))
        assert run.trained_tokens == pytest.approx(estimate, rel=0.1)
        assert former is not None
        assert run.trained_tokens < former
    assert list(tmp_path.glob("data/texts-*/activations-*")), "frozen layers are not kept"


def test_items_that_share_with_queries_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    """A Router whose routes have parameters in common cannot keep its items' vectors."""
    encoder = SentenceTransformer(str(tiny_model_folder), device="cpu")
    modules: Any = list(encoder)
    router = Router.for_query_document(modules, modules)
    with pytest.raises(MethodError, match="for queries alone"):
        split_sides(SentenceTransformer(modules=[router], device="cpu"))


def test_a_model_stored_in_half_precision_scores_the_same_when_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns in single precision, and is scored with the weights that are saved."""
    start = SentenceTransformer(str(write_tiny_model(tmp_path / "tiny")), device="cpu")
    start.bfloat16().save(str(tmp_path / "half"), create_model_card=False)
    monkeypatch.setenv("ES_INITIAL_MODEL", str(tmp_path / "half"))
    method = discover_methods(PLUGINS).get(NAMES[0])
    data = prepared(method, searches(4000), tmp_path / "data")
    model = method.load_initial_model()
    before = np.mean(method.evaluate(model, data.validation)["ndcg_at_10"])
    params = suggestion(method) | {"epochs": 2, "frozen_layers": 1}
    model = method.train(model, params, replace(data, test=None), Reports())
    after = np.mean(method.evaluate(model, data.validation)["ndcg_at_10"])
    assert after > before
    (saved := tmp_path / "saved").mkdir()
    method.save(model, saved)
    assert SentenceTransformer(str(saved), device="cpu").dtype == torch.bfloat16
    again = method.evaluate(method.load(saved), data.validation)
    assert np.mean(again["ndcg_at_10"]) == after


class OfPlugin(MethodTestCase):
    """What the kit holds of a bundled method. name: the method's."""

    __test__ = False

    name: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def method(cls) -> AnyMethod:
        return discover_methods(PLUGINS).get(cls.name)


class TestDefaultMethod(OfPlugin):
    """With the first of two layers frozen."""

    __test__ = True
    name = NAMES[0]
    frozen = ("embeddings.*", "encoder.layer.0.*")


class TestLinearAdapter(OfPlugin):
    """The encoder stays, and so do items."""

    __test__ = True
    name = "Linear adapter"
    frozen = ("embeddings.*", "encoder.*")
    keeps_items = True


class TestQuerySideMethod(OfPlugin):
    """Items stay."""

    __test__ = True
    name = QUERY_SIDE
    keeps_items = True


class TestClipMethod(OfPlugin):
    """Text and images."""

    __test__ = True
    name = "CLIP Fine Tuning Method"


class TestTrainerMethod(OfPlugin):
    """With the loss that it recommends."""

    __test__ = True
    name = TRAINER


@pytest.mark.parametrize("loss", ["gist", "cached_mnrl"])
@pytest.mark.parametrize("matryoshka", [False, True])
def test_each_loss_of_the_trainer_teaches(loss: str, matryoshka: bool, tmp_path: Path) -> None:
    """Held-out queries are ranked better; with Matryoshka, also by a quarter of the dimensions."""
    method = discover_methods(PLUGINS).get(TRAINER)
    assert method.recommended is not None
    params = method.recommended | {"loss": loss, "matryoshka": matryoshka, "margin": 0.0}
    bench = Bench(method, tmp_path, params=params | {"learning_rate": 5e-3, "epochs": 3})
    with bench.standing_in():
        start, tuned = method.load(bench.start), bench.trained.model
        assert len(bench.trained.reports) == 3
        for dimensions in (None, 8) if matryoshka else (None,):
            with start.truncate_embeddings(dimensions), tuned.truncate_embeddings(dimensions):
                before, after = (bench.scores(one)["ndcg_at_10"] for one in (start, tuned))
            assert np.mean(after) > np.mean(before) + 0.1
