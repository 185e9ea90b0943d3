"""What holds for every encoder: it is trained, judged and saved exactly as it is served."""

import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import Splits
from embedding_studio.methods import discover_methods
from embedding_studio.training import loop, towers
from embedding_studio.training.batches import Batch
from embedding_studio.training.data import QueryLists
from embedding_studio.training.encoder import embed_frozen, load_encoder, save_encoder
from embedding_studio.training.layers import count_layers
from embedding_studio.training.serving import similarity_functions
from embedding_studio.training.texts import TokenizedTexts, open_texts, tokenize
from embedding_studio.training.towers import BiEncoder, Tower
from tests.training.tiny import WORDS, Reports
from tests.training.zoo import CLIP, KINDS, write_kind

pytestmark = pytest.mark.slow

QUERIES = [f"{word} please" for word in WORDS[:7]] + [WORDS[0]]
ITEMS = [WORDS[0], *(f"the {word}, and more" for word in WORDS[1:7]), "a long text " * 100]
EMPTY = len(QUERIES) + len(ITEMS)
"""The number of a query without any text."""

COMPUTED_EACH_TIME = {"longformer", "router", "weighted layers", "xlm"}
"""Whose frozen layers do not allow to keep what they give."""
NOT_FROZEN = {"albert", "static"}
"""Whose layers are one that is shared, and who has none."""
BESIDE = {
    "mpnet": "relative_attention_bias",
    "deberta": "rel_embeddings",
    "t5": "relative_attention_bias",
    "albert": "embedding_hidden_mapping_in",
}
"""What stands beside the layers and is used by frozen ones."""
STORED = {
    "bert in bf16": torch.bfloat16,
    "bert in fp16": torch.float16,
    "qwen3 in bf16": torch.bfloat16,
}

PLAN = loop.TrainingPlan(epochs=4, batch_size=4, negatives_per_click=3)
PARAMS = {"learning_rate": 1e-2, "epochs": 4, "batch_size": 4, "negatives_per_click": 3}
PLUGINS = Path(__file__).parents[2] / "plugins"
EVERY_KIND = pytest.mark.parametrize("kind", [*KINDS, CLIP])


@dataclass(frozen=True)
class Tuned:
    """A model of a kind after a training.

    saved: its folder; again: that of the same model loaded and saved once more. before, after: its
    weights; frozen_layers: how many layers were; losses: before and after; vectors, similarity: of
    QUERIES and ITEMS as they are judged; dtypes: of its master weights."""

    start: Path
    saved: Path
    again: Path
    before: Mapping[str, torch.Tensor]
    after: Mapping[str, torch.Tensor]
    frozen_layers: int
    losses: tuple[float, float]
    queries: np.ndarray
    items: np.ndarray
    similarity: np.ndarray
    empty: np.ndarray
    dtypes: set[torch.dtype]


def texts_for(model: SentenceTransformer, folder: Path) -> TokenizedTexts:
    contents = [*QUERIES, *ITEMS, ""]
    is_item = np.isin(np.arange(len(contents)), np.arange(len(QUERIES), EMPTY))
    folder.mkdir()
    tokenize(model, contents, is_item).write(folder)
    return open_texts(folder)


def lists_of(texts: TokenizedTexts) -> QueryLists:
    """Each query was shown three items, and meant the first."""
    count = len(QUERIES)
    items: Any = (np.arange(count)[:, None] + np.array([0, 1, 3])) % count + count
    meant = np.tile([1.0, 0.0, 0.0], count).astype(np.float32)
    return QueryLists(
        texts=texts,
        queries=np.arange(count),
        offsets=np.arange(count + 1) * 3,
        items=items.ravel(),
        relevance=meant,
        clicked=meant.astype(np.int32),
        distractors=np.arange(count, EMPTY),
    )


def batch_of(lists: QueryLists) -> Batch:
    """Everything, and the query without text."""
    relevance = np.eye(len(lists) + 1, len(lists), dtype=np.float32)
    relevance[-1, 0] = 1
    queries = np.append(lists.queries, EMPTY)
    return Batch(queries, lists.distractors, relevance, np.ones_like(relevance))


def weights_of(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


def tune(kind: str, folder: Path) -> Tuned:
    """Train a model as the default method does, save it, load it and save it again."""
    start = write_kind(kind, folder)
    model = load_encoder(start)
    before = weights_of(model)
    lists = lists_of(texts_for(model, folder / "data"))
    frozen_layers = max(0, count_layers(model) - 1)
    tower = Tower(model, lists.texts, frozen_layers, learning_rate=1e-3)
    encoder = BiEncoder(tower, tower)

    def loss() -> float:
        encoder.eval()
        with torch.no_grad():
            return float(loop.batch_loss(encoder, batch_of(lists), PLAN))

    at_first = loss()
    data = Splits(lists, lists, lists)
    loop.train(encoder, PLAN, data, "ndcg_at_10", Reports())
    losses = (at_first, loss())
    vectors = embed_frozen(model, lists.texts, np.arange(EMPTY + 1))
    queries, items = vectors[: len(QUERIES)], vectors[len(QUERIES) : EMPTY]
    compare, _ = similarity_functions(model.similarity_fn_name)
    after, dtypes = weights_of(model), {p.dtype for p in model.parameters()}
    saved, again = folder / "saved", folder / "again"
    save_encoder(model, saved)
    save_encoder(load_encoder(saved), again)
    return Tuned(
        start, saved, again, before, after, frozen_layers, losses, queries, items,
        compare(queries, items).numpy(), vectors[EMPTY], dtypes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Any:
    """Give a tuned model of a kind; what fails, fails in the tests of that kind."""
    return cache(lambda kind: tune(kind, Path(tempfile.mkdtemp(dir=folder))))


@pytest.fixture(scope="module")
def served(tuned: Any, folder: Path, request: pytest.FixtureRequest) -> Mapping[str, np.ndarray]:
    """What one fresh process makes of all the models that this run asks for."""
    kinds = {
        item.callspec.params["kind"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "served" in item.fixturenames
    }
    folders: dict[str, str] = {}
    for kind in kinds:
        try:
            model: Tuned = tuned(kind)
        except Exception:  # noqa: BLE001 - its own test fails by it
            continue
        folders |= {f"{kind}/saved": str(model.saved), f"{kind}/again": str(model.again)}
    asked = folder / "asked.json"
    asked.write_text(json.dumps({"queries": QUERIES, "items": ITEMS, "folders": folders}))
    script = Path(__file__).with_name("serve_encoders.py")
    subprocess.run([sys.executable, str(script), str(asked)], check=True, capture_output=True)
    return dict(np.load(asked.with_suffix(".npz")))


def cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray((some * others).sum(axis=1) / lengths)


@EVERY_KIND
def test_what_is_judged_is_what_is_served(
    kind: str, tuned: Any, served: Mapping[str, np.ndarray]
) -> None:
    """The vectors, and how similar they are, are those of the saved model in a fresh process."""
    model: Tuned = tuned(kind)
    for name, judged in (("queries", model.queries), ("items", model.items)):
        given = served[f"{kind}/saved/{name}"]
        assert judged.shape == given.shape
        assert cosines(judged, given).min() >= 0.9999
    given = served[f"{kind}/saved/similarity"]
    assert model.similarity == pytest.approx(given, abs=float(2e-3 * np.abs(given).max()))
    assert np.isfinite(model.empty).all()


@EVERY_KIND
def test_frozen_layers_stay_and_the_others_learn(kind: str, tuned: Any) -> None:
    """The loss falls; below the cut nothing changes, above it every layer does."""
    model: Tuned = tuned(kind)
    assert model.losses[1] < model.losses[0]
    assert model.dtypes == {torch.float32}
    changed = {name for name, now in model.after.items() if not now.equal(model.before[name])}
    layers: dict[int, set[str]] = {}
    for name in model.before:
        if found := re.search(r"\.(?:layers?|block|h|ffns)\.(\d+)\.", name):
            layers.setdefault(int(found[1]), set()).add(name)
    for number, names in layers.items():
        if "vision" not in "".join(names):
            assert bool(names & changed) is (number >= model.frozen_layers), number
    assert bool(model.frozen_layers) is (kind not in NOT_FROZEN)
    if kind not in ("static", "router"):
        assert not {name for name in changed if "embeddings.weight" in name or "wte" in name}
    if kind in BESIDE:
        beside = {name for name in model.before if BESIDE[kind] in name}
        assert beside
        assert not beside & changed


@EVERY_KIND
def test_weights_are_saved_in_the_type_they_were_stored_in(kind: str, tuned: Any) -> None:
    """And what is saved is what the masters hold, bit for bit."""
    model: Tuned = tuned(kind)
    types = set()
    for file in model.saved.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            types |= {tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118
    assert types == {STORED.get(kind, torch.float32)}
    loaded = weights_of(load_encoder(model.saved))
    assert loaded.keys() == model.after.keys()
    assert all(loaded[name].equal(weights) for name, weights in model.after.items())


@EVERY_KIND
def test_loaded_and_saved_again_it_is_the_same(
    kind: str, tuned: Any, served: Mapping[str, np.ndarray]
) -> None:
    """Vectors, prompts, similarity and the list of modules."""
    model: Tuned = tuned(kind)
    for name in ("queries", "items", "similarity"):
        first, second = (served[f"{kind}/{which}/{name}"] for which in ("saved", "again"))
        assert np.array_equal(first, second)
    for file in ("config_sentence_transformers.json", "modules.json"):
        texts = [(place / file).read_text() for place in (model.saved, model.again)]
        assert json.loads(texts[0]) == json.loads(texts[1])
    start, saved = (SentenceTransformer(str(place)) for place in (model.start, model.saved))
    assert [type(module) for module in start] == [type(module) for module in saved]
    for name in ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim"):
        assert getattr(start, name) == getattr(saved, name)


@pytest.mark.parametrize(
    "kind", ["albert", "t5", "modernbert", "gpt2, left padded", "bert in bf16", "router", CLIP]
)
def test_low_rank_adapters_become_weights_as_they_are_served(kind: str, tmp_path: Path) -> None:
    """The loss falls, matrices above the cut alone change, and the saved model gives the vectors
    that are judged."""
    model = load_encoder(write_kind(kind, tmp_path))
    modules = [type(module) for module in model.modules()]
    before = weights_of(model)
    lists = lists_of(texts_for(model, tmp_path / "data"))
    depth = max(0, count_layers(model) - 1)
    tower = Tower(model, lists.texts, depth, learning_rate=1e-2, lora_rank=2)
    encoder, data = BiEncoder(tower, tower), Splits(lists, lists, lists)
    losses = [float(loop.batch_loss(encoder, batch_of(lists), PLAN).detach())]
    loop.train(encoder, PLAN, data, "ndcg_at_10", Reports())
    losses.append(float(loop.batch_loss(encoder, batch_of(lists), PLAN).detach()))
    assert losses[1] < losses[0]
    assert [type(module) for module in model.modules()] == modules
    changed = [name for name, now in weights_of(model).items() if not now.equal(before[name])]
    assert changed
    assert all(f".{depth}." in name and name.endswith(".weight") for name in changed)
    judged = embed_frozen(model, lists.texts, np.arange(EMPTY))
    save_encoder(model, tmp_path / "saved")
    served = SentenceTransformer(
        str(tmp_path / "saved"), device="cpu", model_kwargs={"dtype": torch.float32}
    )
    encoded = [served.encode_query(text) for text in QUERIES]
    encoded += [served.encode_document(text) for text in ITEMS]
    assert cosines(judged, np.stack(encoded)).min() >= 0.9999


@pytest.mark.parametrize(
    "kind",
    [
        *("t5", "prompts that are not pooled", "gpt2, left padded", "bert in bf16", "truncated"),
        *("dot product", "weighted layers", "static", "router", CLIP),
    ],
)
def test_queries_can_learn_alone(kind: str, tmp_path: Path) -> None:
    """What is saved gives items the very vectors that they had, and queries those that are judged;
    a second training keeps the items' too."""
    method = discover_methods(PLUGINS).get("Query Side Fine Tuning Method")
    place = write_kind(kind, tmp_path)
    model, start = load_encoder(place), load_encoder(place)
    lists = lists_of(texts_for(model, tmp_path / "data"))
    for saved in (tmp_path / "first", tmp_path / "second"):
        before = encoded_alone(model)
        method.train(model, {**PARAMS, "frozen_layers": 1}, Splits(lists, lists, lists), Reports())
        judged = embed_frozen(model, lists.texts, lists.queries)
        saved.mkdir()
        method.save(model, saved)
        model = method.load(saved)
        assert np.array_equal(model.encode_document(ITEMS), start.encode_document(ITEMS))
        assert cosines(encoded_alone(model), judged).min() >= 0.9999
        assert cosines(before, judged).min() < 0.9999


def encoded_alone(model: SentenceTransformer) -> np.ndarray:
    """Return the vectors of QUERIES, each as if nothing else was asked."""
    return np.stack([model.encode_query(text) for text in QUERIES])


@EVERY_KIND
def test_kept_and_computed_activations_give_the_same(
    kind: str, tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Where layers cannot be stood in for, they are computed, and the log says so in one line."""
    monkeypatch.setattr(towers, "fast_arithmetic", lambda device: nullcontext())
    model: Tuned = tuned(kind)
    encoder = load_encoder(model.saved)
    texts = texts_for(encoder, tmp_path / "data")
    caplog.set_level(logging.INFO, "embedding_studio")
    caplog.clear()
    which = np.arange(EMPTY)
    vectors = [
        Tower(encoder, texts, model.frozen_layers, 1e-3, activations_mb=room).vectors(which)
        for room in (10, 0)
    ]
    assert cosines(*vectors).min() >= 0.9999
    is_kept = bool(list((tmp_path / "data").glob("activations-*")))
    assert is_kept is (kind not in COMPUTED_EACH_TIME | NOT_FROZEN)
    lines = [record.message for record in caplog.records if "computed each time" in record.message]
    assert len(lines) == (kind in COMPUTED_EACH_TIME)
