"""Hard negatives, mined from a catalogue whose vectors are known."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from embedding_studio.training import negatives
from embedding_studio.training.data import QueryLists
from embedding_studio.training.negatives import mine_negatives

# texts 0 and 1 are queries, the others items: their cosines with query 0 are 1, 0.95, 0.8, 0.5, 0
COSINES = [1.0, 0.95, 0.8, 0.5, 0.0]


@dataclass
class Texts:
    is_item: Any


def lists(relevance: list[float], near: Any = ()) -> QueryLists:
    """Query 0 was shown the items 2 and 3, query 1 the item 4."""
    of: Any = QueryLists
    found: QueryLists = of(
        queries=np.array([0, 1]),
        offsets=np.array([0, 2, 3]),
        items=np.array([2, 3, 4]),
        distractors=np.array([2]),
        texts=Texts(np.arange(7) >= 2),
        relevance=np.array(relevance, np.float32),
        clicked=np.zeros(3, np.int32),
        near=np.array(near, np.int64).reshape(-1, 2),
    )
    return found


@pytest.fixture(autouse=True)
def vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.array([[c, np.sqrt(1 - c * c)] for c in COSINES])
    table = np.concatenate([[[2.0, 0.0], [0.0, 1.0]], items]).astype(np.float32)
    monkeypatch.setattr(negatives, "embed_frozen", lambda model, inputs, which: table[which])


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.0, 3), (0.1, 4), (0.3, 5), (0.6, 6), (1.5, 6)],
)
def test_the_nearest_beyond_the_margin_is_taken(margin: float, expected: int) -> None:
    """The query meant the item of cosine 1: with a margin of 0.1 that of 0.95 is too near. Where
    all are, it is the least similar one."""
    model: Any = None
    assert mine_negatives(model, lists([0.9, 0.2, 0.9]), np.array([0]), margin).tolist() == [
        expected
    ]


def test_what_was_meant_is_no_negative() -> None:
    """Neither by the query itself nor by one that is spelled almost alike."""
    model: Any = None
    own = lists([0.9, 0.7, 0.9])
    assert mine_negatives(model, own, np.array([0]), 0.0).tolist() == [4]
    near = lists([0.9, 0.7, 0.9], near=[[0, 1], [1, 0]])
    assert mine_negatives(model, near, np.array([0]), 0.0).tolist() == [5]
