"""Simulated searchers, and how good a model truly is on queries that none of them asked."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.demo.corpus import Corpus
from embedding_studio.training.metrics import ranking_metrics

Embeddings = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A position-based click model (Craswell et al. 2008): a result is clicked when it is examined
    and attracts."""

    shown: int = 20
    #: the result at position k = 1, 2, ... is examined with probability 1 / k ** examination_decay
    examination_decay: float = 1.0
    #: the ranges from which each (query, item) pair draws its own probability, once
    attraction_relevant: tuple[float, float] = (0.95, 0.95)
    attraction_irrelevant: tuple[float, float] = (0.05, 0.1)
    #: how many of the searchers who were shown nothing relevant call it irrelevant
    give_up_share: float = 0.05


def simulate_sessions(
    corpus: Corpus,
    query_embeddings: Embeddings,
    item_embeddings: Embeddings,
    count: int,
    seed: int,
    now: datetime,
    behaviour: Behaviour = Behaviour(),
    prefix: str | None = None,
) -> Iterator[Session]:
    """Yield `count` sessions of people who search for the corpus's posted queries.

    The model that ranks, by inner product, is given by its embeddings of the queries (n_queries, d)
    and of the items (n_items, d). Queries follow Zipf's law in a seeded random order of popularity.
    Sessions are spread over the hour before `now`, in order. Their ids begin with the prefix, by
    default "demo-<seed>"."""
    random = np.random.default_rng(seed)
    scores = query_embeddings[corpus.posted] @ item_embeddings.T
    shown = np.argsort(-scores, axis=1, kind="stable")[:, : behaviour.shown]
    relevant = np.take_along_axis(corpus.relevance[corpus.posted], shown, axis=1)
    attraction = np.where(
        relevant,
        random.uniform(*behaviour.attraction_relevant, size=shown.shape),
        random.uniform(*behaviour.attraction_irrelevant, size=shown.shape),
    )
    examination = 1 / np.arange(1, shown.shape[1] + 1) ** behaviour.examination_decay
    popularity = 1 / random.permutation(np.arange(1, len(corpus.posted) + 1))
    rows = random.choice(len(corpus.posted), size=count, p=popularity / popularity.sum())
    clicked = random.random((count, shown.shape[1])) < attraction[rows] * examination
    gives_up = random.random(count) < behaviour.give_up_share

    results = [
        tuple(
            SearchResult(
                corpus.items[item].object_id,
                rank=float(scores[row, item]),
                meta={"text": corpus.items[item].label},
            )
            for item in items
        )
        for row, items in enumerate(shown)
    ]
    prefix = prefix or f"demo-{seed}"
    for number, row in enumerate(rows):
        session_id = f"{prefix}-{number}"
        searched_at = now - timedelta(hours=1) * (1 - number / count)
        yield Session(
            session_id=session_id,
            search_query=corpus.queries[corpus.posted[row]],
            search_results=results[row],
            created_at=searched_at,
            events=tuple(
                SessionEvent(
                    event_id=f"{session_id}-{position}",
                    object_id=results[row][position].object_id,
                    created_at=searched_at + timedelta(seconds=1 + int(position)),
                )
                for position in np.flatnonzero(clicked[number])
            ),
            is_irrelevant=bool(gives_up[number] and not relevant[row].any()),
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """One value per held-out query, in the order of `Corpus.held_out`: (n_held_out,)."""

    ndcg_at_10: NDArray[np.float64]
    mrr_at_10: NDArray[np.float64]


def held_out_quality(
    corpus: Corpus, query_embeddings: Embeddings, item_embeddings: Embeddings
) -> Quality:
    """Score a model by exact search over all items against true relevance, never against clicks.

    The embeddings are (n_queries, d), of all of the corpus's queries, and (n_items, d)."""
    scores = query_embeddings[corpus.held_out] @ item_embeddings.T
    metrics = ranking_metrics(scores, corpus.relevance[corpus.held_out].astype(np.float64))
    return Quality(metrics["ndcg_at_10"], metrics["mrr_at_10"])
