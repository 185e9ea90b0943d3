from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import Session, SessionEvent, Splits, split_by_query
from embedding_studio.errors import MethodError
from embedding_studio.training import evaluation
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks, text_of
from embedding_studio.training.encoder import load_encoder
from embedding_studio.training.evaluation import (
    evaluate,
    evaluate_vectors,
    explain,
    note_start,
    note_start_vectors,
    rank,
)
from embedding_studio.training.metrics import ranking_metrics
from embedding_studio.training.serving import unit_of
from embedding_studio.training.texts import tokenize
from tests.training.test_batches import lists_by_hand, random_lists
from tests.training.tiny import NOW, WORDS, searches, session


def test_evaluation_by_hand() -> None:
    """Without clicks that judge, probabilities at their ranks, a random item among them."""
    lists = lists_by_hand()
    items = {2: [0.2, 0.1], 3: [0.9, 0.9], 4: [0.1, 0.2], 5: [0.3, 0.8], 6: [0.5, 0.0]}
    vectors = np.array([items.get(text, [0.0, 0.0]) for text in range(7)], np.float32)
    scores = evaluate_vectors(lists, np.eye(2, dtype=np.float32), lambda which: vectors[which])
    # query 0 ranks 3, 6, 5, 2, 4 (5 and 6 were not shown); query 1 ranks 3, 5, 6
    first = (0.4 + 0.9 / np.log2(5) + 0.1 / np.log2(6)) / (0.9 + 0.4 / np.log2(3) + 0.1 / 2)
    second = (0.12 + 0.8 / np.log2(3)) / (0.8 + 0.12 / np.log2(3))
    assert scores["ndcg_at_10"] == pytest.approx([first, second])
    assert scores["mrr_at_10"] == pytest.approx([1 / 4, 1 / 2])
    assert scores["similarity_gap"] == pytest.approx((0.2 - 0.5 + 0.8 - 0.9) / 2)


def random_vectors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors of 90 queries and 300 items."""
    vectors = np.random.default_rng(seed).normal(size=(390, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:90], vectors[90:]


def test_a_distractor_that_was_shown_counts_once() -> None:
    """Then what was shown decides, and the item is not presumed irrelevant beside it."""
    queries, items = random_vectors()
    lists = random_lists(queries=90, shown=8)
    lists.relevance[0] = 1  # so that the first query has a value
    unshown = np.setdiff1d(np.arange(300), lists.items)[:5]
    few = replace(lists, distractors=unshown)
    more = replace(lists, distractors=np.concatenate([unshown, lists.items[:8]]))
    first, second = (
        np.asarray(evaluate_vectors(x, queries, lambda which: items[which])["ndcg_at_10"])
        for x in (few, more)
    )
    assert first[0] == pytest.approx(second[0])  # the first query was shown all that was added
    assert not np.allclose(first, second)


def test_scores_do_not_depend_on_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of pairs at a time, the values are the same."""
    queries, items = random_vectors()
    lists = random_lists(queries=90, shown=8)

    def scores() -> dict[str, Any]:
        return dict(evaluate_vectors(lists, queries, lambda which: items[which]))

    whole = scores()
    monkeypatch.setattr(evaluation, "_CHUNK", 7)
    for name, values in scores().items():
        assert values == pytest.approx(whole[name])


def test_a_collapsed_model_cannot_win() -> None:
    """A model that gives every input the same vector scores below a random one."""
    lists = replace(random_lists(queries=90, shown=8), distractors=np.arange(100))
    queries, items = random_vectors()
    random = evaluate_vectors(lists, queries, lambda which: items[which])
    same = np.full((300, 8), 8**-0.5, np.float32)
    collapsed = evaluate_vectors(lists, same[:90], lambda which: same[which])
    for metric in ("ndcg_at_10", "mrr_at_10", "recall_at_10", "precision_at_10", "f1_at_10"):
        assert np.mean(collapsed[metric]) < np.mean(random[metric])


def test_vectors_that_are_not_finite_are_an_error() -> None:
    """A diverged model gets an error and never a score."""
    nothing = np.full((7, 2), np.nan, np.float32)
    with pytest.raises(MethodError, match="diverged"):
        evaluate_vectors(lists_by_hand(), nothing[:2], lambda which: nothing[which])


@pytest.mark.parametrize("name", ["dot", "euclidean", "manhattan"])
def test_models_are_judged_by_their_own_similarity(name: str) -> None:
    """Scores are those of the similarity as NumPy has it, ranked."""
    lists = random_lists(queries=90, shown=8)
    queries, items = random_vectors()
    queries, items = 3 * queries, items * np.arange(1, 301, dtype=np.float32)[:, None]
    apart = queries[lists.pair_queries()] - items[lists.items]
    own = {
        "dot": (queries[lists.pair_queries()] * items[lists.items]).sum(axis=1),
        "euclidean": -np.sqrt((apart**2).sum(axis=1)),
        "manhattan": -np.abs(apart).sum(axis=1),
    }[name]
    alone = replace(lists, distractors=np.empty(0, np.int64))
    scores = evaluate_vectors(alone, queries, lambda which: items[which], name)
    ones = np.ones(len(lists.items), np.bool_)
    relevance = lists.padded(lists.relevance, 0.0)
    ranking = ranking_metrics(lists.padded(own, 0.0), relevance, lists.padded(ones, False))
    clear = (relevance >= 0.5).any(axis=1)
    assert scores["ndcg_at_10"] == pytest.approx(ranking["ndcg_at_10"][clear], rel=1e-4)


def test_a_unit_of_similarity_is_worth_as_much_as_one_of_cosine() -> None:
    """For vectors of length 3 and 5, a dot product of 15; a distance has its own."""
    queries, items = (torch.from_numpy(vectors) for vectors in random_vectors())
    assert unit_of("cosine", queries, items) == 1
    assert unit_of("dot", 3 * queries, 5 * items) == pytest.approx(15, rel=1e-4)
    assert unit_of("euclidean", 3 * queries, 3 * items) == pytest.approx(
        3 * unit_of("euclidean", queries, items), rel=1e-4
    )
    assert unit_of("dot", 0 * queries, items) == 1


# -- judged by clicks --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> SentenceTransformer:
    return load_encoder(tiny_model_folder)


def prepare(
    sessions: list[Session], model: SentenceTransformer, folder: Path
) -> Mapping[str, float]:
    return prepare_clicks(
        split_by_query(sessions, 0.15, 0.3), text_of, partial(tokenize, model), folder
    )


@pytest.fixture(scope="module")
def noted(
    model: SentenceTransformer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Splits[QueryLists], Mapping[str, float]]:
    """Return splits whose start was noted, and what that told."""
    folder = tmp_path_factory.mktemp("noted")
    prepare(searches(6000), model, folder)
    figures = note_start(model, folder, open_clicks(folder).test)
    return open_clicks(folder), figures


def test_the_start_is_judged_the_same_each_time(
    noted: tuple[Splits[QueryLists], Mapping[str, float]], model: SentenceTransformer
) -> None:
    """Its mean is an nDCG; each query that was asked has a value."""
    for lists in (noted[0].validation, noted[0].test):
        first, second = (np.asarray(evaluate(model, lists)["ndcg_at_10"]) for _ in range(2))
        assert (first == second).all()
        assert first.shape == (len(lists),)
        assert 0 < first.mean() <= 1


def test_training_queries_have_labels_and_no_start(
    noted: tuple[Splits[QueryLists], Mapping[str, float]], model: SentenceTransformer
) -> None:
    """They judge nobody."""
    train = noted[0].train
    assert train.start is None
    assert len(np.asarray(evaluate(model, train)["ndcg_at_10"])) < len(train)


def test_a_model_that_knows_what_is_meant_is_surely_better(
    noted: tuple[Splits[QueryLists], Mapping[str, float]], model: SentenceTransformer
) -> None:
    """And one that ranks the opposite is surely worse."""
    lists = noted[0].test
    meant = np.eye(len(WORDS), dtype=np.float32)
    named = {query.split()[0]: place for place, query in enumerate(lists.spellings())}
    assert set(named) <= set(WORDS)
    tokens = lists.texts.columns["input_ids"]
    # an item is "<word> <word>": its first token after the one for the beginning tells it
    words = {model.tokenizer(word)["input_ids"][1]: n for n, word in enumerate(WORDS)}

    def items(which: np.ndarray) -> np.ndarray:
        return np.stack(
            [meant[words[int(tokens[lists.texts.offsets[text] + 1])]] for text in which]
        )

    start = np.asarray(evaluate(model, lists)["ndcg_at_10"])
    queries = np.stack([meant[WORDS.index(query.split()[0])] for query in lists.spellings()])
    for sign in (1, -1):
        found = np.asarray(evaluate_vectors(lists, sign * queries, items)["ndcg_at_10"])
        error = (found - start).std(ddof=1) / np.sqrt(len(start))
        assert sign * (found - start).mean() > 1.96 * error
        assert found.mean() <= 1


def test_the_way_people_click_is_told(
    noted: tuple[Splits[QueryLists], Mapping[str, float]],
) -> None:
    """Six likelihoods per click of queries held out, and the one that was chosen."""
    figures = noted[1]
    assert sum(name.endswith("_log_likelihood") for name in figures) == 6
    assert sum(name.endswith("_chosen") for name in figures) == 1


def test_a_similarity_of_another_scale_judges_alike(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """Vectors ten times as long, compared by their dot product, are worth the same."""
    prepare(searches(3000), model, tmp_path)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(600, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    other = vectors + random.normal(size=vectors.shape).astype(np.float32) / 20
    other /= np.linalg.norm(other, axis=1, keepdims=True)

    def score(length: float, similarity: str) -> np.ndarray:
        embed = [lambda which, v=v: length * v[which] for v in (vectors, other)]
        note_start_vectors(tmp_path, embed[0], embed[0], similarity)
        lists = open_clicks(tmp_path).test
        scores = evaluate_vectors(lists, embed[1](lists.queries), embed[1], similarity)
        return np.asarray(scores["ndcg_at_10"])

    assert score(10, "dot") == pytest.approx(score(1, "cosine"), abs=1e-3)


def test_sessions_that_no_person_made_do_not_judge(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """A user with a thousand searches is left out and counted; the verdict is as without them."""
    people = searches(4000)
    figures, scores = [], []
    robots = [
        replace(
            session(90_000 + n, s.search_query, [r.object_id for r in s.search_results], [0, 1]),
            user_id="crawler",
        )
        for n, s in enumerate(people[:1000])
    ]
    for name, sessions in (("without", people), ("with", people + robots)):
        (tmp_path / name).mkdir()
        figures.append(prepare(sessions, model, tmp_path / name))
        note_start(model, tmp_path / name, open_clicks(tmp_path / name).test)
        lists = open_clicks(tmp_path / name).test
        scores.append(np.mean(evaluate(model, lists)["ndcg_at_10"]))
    assert figures[1]["sessions_of_no_person"] - figures[0]["sessions_of_no_person"] == 1000
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


def test_a_purchase_judges_more_than_a_click(model: SentenceTransformer, tmp_path: Path) -> None:
    """Each pair that is bought is surer to be relevant."""
    plain = searches(3000)
    bought = [
        replace(
            s,
            events=tuple(SessionEvent(e.event_id, e.object_id, NOW, "purchase") for e in s.events),
        )
        for s in plain
    ]
    evidence = []
    for name, sessions in (("plain", plain), ("bought", bought)):
        (tmp_path / name).mkdir()
        prepare(sessions, model, tmp_path / name)
        note_start(model, tmp_path / name, open_clicks(tmp_path / name).test)
        lists = open_clicks(tmp_path / name).test
        assert lists.start is not None
        evidence.append(lists.start.evidence[lists.clicked > 0].mean())
    assert evidence[1] > evidence[0] + 1


def test_a_split_that_stands_twice_is_judged_twice_alike(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """A refit has no queries left to test: validation stands there for them."""
    parts = split_by_query(searches(3000))
    twice = replace(parts, train=parts.train + parts.test, test=parts.validation)
    prepare_clicks(twice, text_of, partial(tokenize, model), tmp_path)
    note_start(model, tmp_path, open_clicks(tmp_path).test)
    splits = open_clicks(tmp_path)
    one, other = (evaluate(model, lists) for lists in (splits.validation, splits.test))
    assert one["ndcg_at_10"] == pytest.approx(other["ndcg_at_10"])


def test_queries_are_explained_one_by_one(
    noted: tuple[Splits[QueryLists], Mapping[str, float]], model: SentenceTransformer
) -> None:
    """By how people spell them, those with a probably relevant item; as the labels say."""
    lists = noted[0].test
    found = explain(model, lists)
    bare = np.asarray(evaluate(model, replace(lists, start=None))["ndcg_at_10"])
    assert list(found.values()) == pytest.approx(bare.tolist())
    assert set(found) <= set(lists.spellings())
    assert all(query.split()[0] in WORDS for query in found)


def test_what_ranks_first_is_told_by_query(
    noted: tuple[Splits[QueryLists], Mapping[str, float]], model: SentenceTransformer
) -> None:
    """For the queries that are explained: distinct texts, most similar first, among them what the
    query was shown."""
    lists = noted[0].test
    found = rank(model, lists)
    assert found.keys() == explain(model, lists).keys()
    query, texts = next(iter(found.items()))
    assert len({*texts}) == len(texts) == 10
    scores = model.encode_query([query]) @ model.encode_document(texts).T
    assert np.all(np.diff(scores[0]) <= 1e-6)
    contents = lists.texts.contents
    row = lists.spellings().index(query)
    shown = {contents[n] for n in lists.items[lists.offsets[row] : lists.offsets[row + 1]]}
    assert shown & {*texts}
