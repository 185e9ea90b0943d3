from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import Session, Splits, normalize_query, split_by_query
from embedding_studio.errors import NotEnoughData
from embedding_studio.training.data import (
    QueryLists,
    open_clicks,
    prepare_clicks,
    text_of,
)
from embedding_studio.training.encoder import load_encoder
from embedding_studio.training.texts import tokenize
from tests.training.tiny import searches, session


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> SentenceTransformer:
    return load_encoder(tiny_model_folder)


def prepare(
    sessions: Splits[list[Session]], model: SentenceTransformer, folder: Path
) -> Mapping[str, float]:
    return prepare_clicks(sessions, text_of, partial(tokenize, model), folder)


def texts_of(model: SentenceTransformer, lists: QueryLists, which: np.ndarray) -> list[str]:
    texts = lists.texts
    tokens = texts.columns["input_ids"]
    return [
        model.tokenizer.decode(
            tokens[texts.offsets[text] : texts.offsets[text + 1]], skip_special_tokens=True
        )
        for text in which
    ]


def test_columns_hold_what_was_shown_and_clicked(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """A training query, its items, and its clicks can be read back; spellings are one query."""
    many = split_by_query(searches(4000))
    extra = [
        session(10_001, "Unmatched  Query", ["red kite", "old boat"], [1]),
        session(10_002, "unmatched query", ["red kite", "old boat", "new boat"], [1]),
    ]
    figures = prepare(replace(many, train=many.train + extra), model, tmp_path)
    lists = open_clicks(tmp_path).train
    place = texts_of(model, lists, lists.queries).index("unmatched query")
    pairs = slice(lists.offsets[place], lists.offsets[place + 1])
    items = texts_of(model, lists, lists.items[pairs])
    assert dict(zip(items, lists.clicked[pairs], strict=True)) == {
        "red kite": 0,
        "old boat": 2,
        "new boat": 0,
    }
    likely = dict(zip(items, lists.relevance[pairs], strict=True))
    assert likely["old boat"] > 0.5 > max(likely["red kite"], likely["new boat"])
    assert figures["train_queries"] == len(
        {normalize_query(s.search_query) for s in many.train + extra}
    )
    assert figures["results_left_out"] == 0


def test_what_no_person_clicked_teaches_nothing(model: SentenceTransformer, tmp_path: Path) -> None:
    """A tenth more sessions, that click on most of what they were shown, leave clicks and relevance
    of the training queries as they were; they are counted."""
    many = split_by_query(searches(3000))
    robots = [
        session(
            20_000 + n,
            one.search_query,
            [result.meta["text"] for result in one.search_results],
            range(1, len(one.search_results)),
        )
        for n, one in enumerate(many.train[:200])
        if len(one.search_results) > 5
    ]
    folders = tmp_path / "people", tmp_path / "all"
    for folder, part in zip(folders, (many.train, many.train + robots), strict=True):
        folder.mkdir()
        figures = prepare(replace(many, train=part), model, folder)
    assert figures["sessions_of_no_person"] == len(robots) > 0
    people, everybody = (open_clicks(folder).train for folder in folders)
    assert everybody.clicked.tolist() == people.clicked.tolist()
    assert everybody.relevance == pytest.approx(people.relevance, abs=1e-6)


def test_columns_are_memory_mapped_without_pickle(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """Opening reads no column; nothing on disk but plain arrays and JSON."""
    prepare(split_by_query(searches(4000)), model, tmp_path)
    lists = open_clicks(tmp_path).train
    assert isinstance(lists.items, np.memmap)
    assert isinstance(lists.texts.columns["input_ids"], np.memmap)
    assert {file.suffix for file in tmp_path.iterdir()} == {".npy", ".json"}


def test_no_query_is_in_two_splits(model: SentenceTransformer, tmp_path: Path) -> None:
    """Validation and test queries never occur in the training data, however they are spelled."""
    sessions = searches(4000)
    shouted = [replace(s, search_query=s.search_query.upper()) for s in sessions[::3]]
    prepare(split_by_query(sessions + shouted), model, tmp_path)
    found = open_clicks(tmp_path)
    queries = [
        {text.lower() for text in texts_of(model, lists, lists.queries)}
        for lists in (found.train, found.validation, found.test)
    ]
    assert not queries[0] & queries[1]
    assert not queries[0] & queries[2]
    assert not queries[1] & queries[2]


def test_test_clicks_leave_training_data_untouched(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """The click model is fitted on training sessions alone."""
    splits = split_by_query(searches(4000))
    other = replace(splits, test=[replace(s, events=()) for s in splits.test[:9]] + splits.test[9:])
    relevance = []
    for name, sessions in (("a", splits), ("b", other)):
        (tmp_path / name).mkdir()
        prepare(sessions, model, tmp_path / name)
        relevance.append(np.array(open_clicks(tmp_path / name).train.relevance))
    assert (relevance[0] == relevance[1]).all()


def test_too_little_data_is_an_error_with_counts(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """The message tells what there is, what is needed and what to do."""
    with pytest.raises(NotEnoughData, match=r"train: \d+ of \d+ .* at least 10 .* collect more"):
        prepare(split_by_query(searches(12)), model, tmp_path)


def test_no_sessions_at_all_is_too_little(model: SentenceTransformer, tmp_path: Path) -> None:
    """Empty splits raise the same error."""
    with pytest.raises(NotEnoughData, match="train: 0 of 0"):
        prepare(Splits([], [], []), model, tmp_path)


def test_items_without_text_are_an_error_that_names_one(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """If no result has a text the message names an object id and the way out."""
    bare = [session(n, f"q{n}", ["id-7", "id-8"], [0], texts=False) for n in range(100)]
    with pytest.raises(NotEnoughData, match=r"200 results.*'id-7'.*item_text"):
        prepare(split_by_query(bare), model, tmp_path)


def test_some_items_without_text_are_skipped_and_counted(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """The rest of the data is used."""
    bare = [session(90_000 + n, f"q{n}", ["x", "y"], [0], texts=False) for n in range(5)]
    figures = prepare(split_by_query(searches(4000) + bare), model, tmp_path)
    assert figures["results_left_out"] == 10


def test_items_that_are_not_texts_have_their_own_numbers(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """With encode_items the texts are the queries alone, and keys come once, in their order."""
    keys: list[str] = []
    sessions = split_by_query(searches(4000))
    figures = prepare_clicks(
        sessions,
        lambda result: f"image of {result.object_id}",
        partial(tokenize, model),
        tmp_path,
        encode_items=keys.extend,
    )
    lists = open_clicks(tmp_path).train
    assert len(set(keys)) == len(keys) == figures["items"]
    assert all(key.startswith("image of ") for key in keys)
    assert len(lists.texts) == sum(figures[f"{x}_queries"] for x in ("train", "validation", "test"))
    query = sessions.train[0].search_query
    place = texts_of(model, lists, lists.queries).index(query)
    items = lists.items[lists.offsets[place] : lists.offsets[place + 1]]
    assert {keys[item] for item in items} == {
        f"image of {result.object_id}"
        for session in sessions.train
        if session.search_query == query
        for result in session.search_results
    }


def test_only_training_queries_have_neighbours(model: SentenceTransformer, tmp_path: Path) -> None:
    """The plural of a training query is its neighbour; the other splits have none."""
    many = split_by_query(searches(4000))
    extra = [
        session(10_001, "unmatched query", ["red kite", "old boat"], [1]),
        session(10_002, "unmatched queries", ["red kite", "new boat"], [1]),
        session(10_003, "query unmatched", ["red kite", "new boat"], [0]),
    ]
    prepare(replace(many, train=many.train + extra), model, tmp_path)
    splits = open_clicks(tmp_path)
    texts = texts_of(model, splits.train, splits.train.queries)
    near = {(texts[a], texts[b]) for a, b in splits.train.near}
    assert ("unmatched query", "query unmatched") in near
    assert len(splits.validation.near) == len(splits.test.near) == 0


def test_padding_keeps_rows_apart() -> None:
    """Columns become tables by their offsets."""
    column = np.arange(3)
    lists = QueryLists(
        texts=None,  # type: ignore[arg-type]
        queries=np.arange(3),
        offsets=np.array([0, 2, 2, 3]),
        items=column,
        relevance=np.ones(3, np.float32),
        clicked=np.ones(3, np.int32),
        distractors=np.array([]),
    )
    assert lists.padded(column, -1).tolist() == [[0, 1], [-1, -1], [2, -1]]
    assert lists.pair_queries().tolist() == [0, 0, 2]
