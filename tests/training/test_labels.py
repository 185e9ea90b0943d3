"""Labels as a second entrance to the columns."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import (
    SearchResult,
    Session,
    Splits,
    part_of_query,
    split_by_query,
)
from embedding_studio.errors import NotEnoughData
from embedding_studio.labels import LabelledResult
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks, text_of
from embedding_studio.training.encoder import load_encoder
from embedding_studio.training.evaluation import evaluate_vectors, note_start, note_start_vectors
from embedding_studio.training.texts import tokenize
from tests.training.test_data import texts_of
from tests.training.tiny import WORDS, searches

NO_SESSIONS: Splits[Sequence[Session]] = Splits((), (), ())
Labels = Splits[Sequence[LabelledResult]]


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> SentenceTransformer:
    return load_encoder(tiny_model_folder)


def label(query: str, text: str, relevance: float) -> LabelledResult:
    return LabelledResult(query, SearchResult(text, meta={"text": text} if text else {}), relevance)


def split(labels: Iterable[LabelledResult]) -> Labels:
    parts: dict[str, list[LabelledResult]] = {"train": [], "validation": [], "test": []}
    for one in labels:
        parts[part_of_query(one.query)].append(one)
    return Splits(**parts)


def judged(count: int = 120) -> list[LabelledResult]:
    """Three items a query: the word itself is wholly relevant, the next a third, another not."""
    return [
        label(f"{WORDS[n % 30]} {n}", f"{WORDS[(n + step) % 30]}", relevance)
        for n in range(count)
        for step, relevance in ((0, 1.0), (1, 1 / 3), (2, 0.0))
    ]


def prepare(
    model: SentenceTransformer,
    folder: Path,
    labels: Labels | None,
    sessions: Splits[Sequence[Session]] = NO_SESSIONS,
) -> Mapping[str, float]:
    folder.mkdir(exist_ok=True)
    return prepare_clicks(sessions, text_of, partial(tokenize, model), folder, labels=labels)


def pairs_of(model: SentenceTransformer, lists: QueryLists) -> dict[tuple[str, str], float]:
    """Return the relevance of each query and item."""
    queries = texts_of(model, lists, lists.queries[lists.pair_queries()])
    items = texts_of(model, lists, lists.items)
    values = lists.relevance.tolist()
    return dict(zip(zip(queries, items, strict=True), values, strict=True))


def test_labels_alone_are_columns(model: SentenceTransformer, tmp_path: Path) -> None:
    """Relevance is that of the labels, what is relevant counts as clicked, nothing is made up of
    clicks, and spellings of a query are one."""
    labels = split([*judged(), label(f"{WORDS[0].upper()}  0", "far away", 0.0)])
    figures = prepare(model, tmp_path, labels)
    found = open_clicks(tmp_path)
    pairs: dict[tuple[str, str], float] = {}
    for lists in found.named().values():
        pairs |= pairs_of(model, lists)
        assert lists.clicked.tolist() == (np.asarray(lists.relevance) >= 0.5).tolist()
    assert len(pairs) == 361
    for one in judged():
        assert pairs[one.query, one.result.object_id] == pytest.approx(one.relevance)
    assert pairs[f"{WORDS[0]} 0", "far away"] == 0
    assert (figures["train_clicks"], figures["train_sessions"]) == (0, 0)
    assert not [name for name in figures if name.startswith("click_")]


def test_labels_alone_are_judged_by_the_true_ndcg(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """Graded, over what is labelled and random items among it; there is no start to be told by."""
    prepare(model, tmp_path, split(judged()))
    test = open_clicks(tmp_path).test
    assert note_start(model, tmp_path, test) == {}
    test = open_clicks(tmp_path).test
    assert test.start is None
    grade = dict(zip(test.items.tolist(), test.relevance.tolist(), strict=True))
    first = test.items[test.offsets[:-1]]  # of each query

    def vectors(which: np.ndarray, best: int) -> np.ndarray:
        return np.array([[1.0, 0.0] if item == best else [0.0, 1.0] for item in which], np.float32)

    one = QueryLists(
        queries=test.queries[:1],
        offsets=test.offsets[:2],
        items=test.items[:3],
        distractors=np.empty(0, np.int64),
        texts=test.texts,
        relevance=test.relevance[:3],
        clicked=test.clicked[:3],
    )
    by_grade = sorted(zip(one.relevance.tolist(), one.items.tolist(), strict=True))
    middle = by_grade[1][1]
    scores = evaluate_vectors(one, np.array([[1.0, 0.0]], np.float32), lambda w: vectors(w, middle))
    # the item of a third first, then by worst order the irrelevant and the relevant one
    assert scores["ndcg_at_10"] == pytest.approx(
        [(1 / 3 + 1 / np.log2(4)) / (1 + 1 / 3 / np.log2(3))]
    )
    assert len(grade) <= 30 >= len(set(first.tolist()))


def test_labels_win_over_clicks(model: SentenceTransformer, tmp_path: Path) -> None:
    """Of the same pair; what clicks say of all others, and of how people click, stays."""
    sessions: Splits[Sequence[Session]] = split_by_query(searches(4000))
    without = prepare(model, tmp_path / "clicks", None, sessions)
    plain = open_clicks(tmp_path / "clicks").train
    by_clicks = pairs_of(model, plain)
    (query, item), _ = max(by_clicks.items(), key=lambda pair: pair[1])
    labels: Labels = Splits([label(query, item, 0.0), label(query, "unshown", 1.0)], [], [])
    figures = prepare(model, tmp_path / "both", labels, sessions)
    both = open_clicks(tmp_path / "both").train
    found = pairs_of(model, both)
    assert (found.pop((query, item)), found.pop((query, "unshown"))) == (0.0, 1.0)
    del by_clicks[query, item]
    assert found == pytest.approx(by_clicks)
    for name in ("click_attraction_relevant", "click_examination_at_10", "train_clicks"):
        assert figures[name] == without[name]


def test_labels_without_content_are_left_out(model: SentenceTransformer, tmp_path: Path) -> None:
    """And counted; where none has any, that is an error which names one."""
    figures = prepare(model, tmp_path, split([*judged(), label(f"{WORDS[0]} 0", "", 1.0)]))
    assert figures["labels_left_out"] == 1
    bare: list[LabelledResult] = [LabelledResult("q", SearchResult("shoe-7"), 1.0)]
    with pytest.raises(NotEnoughData, match="'shoe-7'"):
        prepare(model, tmp_path, Splits(bare, [], []))


def test_labels_that_only_judge_may_be_few(model: SentenceTransformer, tmp_path: Path) -> None:
    """The same in all parts; to learn from they are too few."""
    few = judged(1)
    with pytest.raises(NotEnoughData, match="too few queries"):
        prepare(model, tmp_path, split(few))
    prepare(model, tmp_path / "judge", Splits(few, few, few))
    assert len(open_clicks(tmp_path / "judge").test) == 1


def test_labels_judge_beside_clicks(model: SentenceTransformer, tmp_path: Path) -> None:
    """Among the clicks' queries and by queries of their own: a model that ranks as the labels say
    is better."""
    sessions: Splits[Sequence[Session]] = split_by_query(searches(3000))
    prepare(model, tmp_path, split(judged(300)), sessions)

    def random(which: np.ndarray) -> np.ndarray:
        vectors = np.stack([np.random.default_rng(int(n)).normal(size=32) for n in which])
        unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit.astype(np.float32)

    note_start_vectors(tmp_path, random, random)
    test = open_clicks(tmp_path).test
    assert test.start is not None
    labelled = sum(part_of_query(f"{WORDS[n % 30]} {n}") == "test" for n in range(300))
    assert test.start.is_asked.sum() == len(test) > labelled
    words = {word: n for n, word in enumerate(WORDS)}

    def knowing(which: np.ndarray) -> np.ndarray:
        places = [words[text.split()[0]] for text in texts_of(model, test, which)]
        return np.eye(len(WORDS), dtype=np.float32)[places]

    start = evaluate_vectors(test, random(test.queries), random)
    better = evaluate_vectors(test, knowing(test.queries), knowing)
    gain = np.asarray(better["ndcg_at_10"]) - start["ndcg_at_10"]
    assert gain.mean() > 0.2
    assert gain.mean() / (gain.std() / np.sqrt(len(gain))) > 5
