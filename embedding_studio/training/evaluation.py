"""How good a model is, judged by clicks that another model's ranking received."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from sentence_transformers import SentenceTransformer

from embedding_studio.errors import MethodError
from embedding_studio.training.browsing import MOST_SHOWINGS, choose, some_queries
from embedding_studio.training.data import (
    QueryLists,
    ShownLists,
    open_asked,
    open_clicks,
    write_relevance,
)
from embedding_studio.training.encoder import embed_once
from embedding_studio.training.inputs import Inputs
from embedding_studio.training.judge import (
    METRICS,
    TOP,
    Start,
    discounts,
    ideal_of_those_with_any,
    starting_features,
)
from embedding_studio.training.metrics import RELEVANT_FROM, ranking_metrics, similarity_gap
from embedding_studio.training.serving import COSINE, similarity_functions, unit_of

PerQuery = NDArray[np.float64]
Vectors = NDArray[np.float32]
Ints = NDArray[np.integer]
Flags = NDArray[np.bool_]
Embed = Callable[[Ints], Vectors]

_CHUNK = 10_000
_TEXT_CHARS = 200
_DOUBT = 1e-3  # what a label leaves


def evaluate(
    model: SentenceTransformer, lists: QueryLists, items: Inputs | None = None
) -> dict[str, float | PerQuery]:
    """Score an encoder with `evaluate_vectors`, each distinct query and item encoded once.

    items: what the lists' items are, where they are not texts."""
    embed_queries, embed_items = _embedders(model, lists, items)
    return evaluate_vectors(
        lists, embed_queries(lists.queries), embed_items, model.similarity_fn_name
    )


def explain(
    model: SentenceTransformer, lists: QueryLists, items: Inputs | None = None
) -> dict[str, float]:
    """Score an encoder query by query with `explain_vectors`."""
    embed_queries, embed_items = _embedders(model, lists, items)
    return explain_vectors(
        lists, embed_queries(lists.queries), embed_items, model.similarity_fn_name
    )


def rank(model: SentenceTransformer, lists: QueryLists) -> dict[str, Sequence[str]]:
    """Rank with `rank_vectors` by an encoder of texts."""
    embed_queries, embed_items = _embedders(model, lists, None)
    return rank_vectors(lists, embed_queries(lists.queries), embed_items, model.similarity_fn_name)


def note_start(
    model: SentenceTransformer, folder: Path, lists: QueryLists, items: Inputs | None = None
) -> Mapping[str, float]:
    """Note an encoder with `note_start_vectors`. lists: any split of what is in the folder."""
    return note_start_vectors(folder, *_embedders(model, lists, items), model.similarity_fn_name)


def _embedders(
    model: SentenceTransformer, lists: QueryLists, items: Inputs | None
) -> tuple[Embed, Embed]:
    """Return what embeds queries, and what embeds items."""
    item_inputs = lists.texts if items is None else items
    return (
        lambda which: embed_once(model, lists.texts, which),
        lambda which: embed_once(model, item_inputs, which),
    )


def evaluate_vectors(
    lists: QueryLists, queries: Vectors, embed_items: Embed, similarity: str = COSINE
) -> dict[str, float | PerQuery]:
    """Score a model by how it ranks what each query was shown, and random items among it.

    queries: (n_queries, d) embeddings of lists.queries; embed_items: those of any items.
    similarity: what a search compares them by; where it is the cosine, they are unit vectors.

    Where the start was noted, metrics are (n_asked,) values whose means are what `judge` makes of
    the clicks; single values are rough and may lie outside [0, 1]. Elsewhere people's labels or the
    click model's probabilities count, of queries with a probably relevant item: with labels alone
    it is the true nDCG; with the probabilities it is steadier, and in favour of the ranking that
    was shown. similarity_gap: one number, see `metrics`.

    Items never shown are unjudged and left out (Sakai 2007, condensed lists), for a better model
    finds relevant ones there; but a fixed random sample of items is presumed irrelevant, so that a
    model which keeps the order of the shown and loses its sense of everything else does not pass.
    """
    found = _similarities(lists, queries, embed_items, similarity)
    relevance = lists.padded(lists.relevance, 0.0)
    shown = lists.padded(np.ones(len(lists.items), np.bool_), False)
    scores: dict[str, float | PerQuery] = {
        **_labelled_metrics(lists, found, _clear(lists)),
        "similarity_gap": similarity_gap(lists.padded(found.shown, 0.0), relevance, shown),
    }
    if lists.start is not None:
        discount = found.discounts(lists)
        for metric in METRICS:
            scores[f"{metric}_at_{TOP}"] = lists.start.judged(found.shown, discount, metric)
    return scores


def explain_vectors(
    lists: QueryLists, queries: Vectors, embed_items: Embed, similarity: str = COSINE
) -> dict[str, float]:
    """Return the nDCG@10 of each query with a probably relevant item, by how it is spelled.

    The click model's probabilities are the labels; arguments as in `evaluate_vectors`."""
    clear = _clear(lists)
    found = _similarities(lists, queries, embed_items, similarity)
    values = _labelled_metrics(lists, found, clear)["ndcg_at_10"]
    spelled = [query for query, is_clear in zip(lists.spellings(), clear, strict=True) if is_clear]
    return dict(zip(spelled, values.tolist(), strict=True))


def rank_vectors(
    lists: QueryLists, queries: Vectors, embed_items: Embed, similarity: str = COSINE
) -> dict[str, Sequence[str]]:
    """Return the texts that rank first, TOP at most, for each query that `explain_vectors` scores:
    of what it was shown, and of the random items among it.

    Arguments as in `evaluate_vectors`; items are texts."""
    found, clear = _similarities(lists, queries, embed_items, similarity), _clear(lists)
    others = np.where(found.is_presumed, found.others, -np.inf)
    scores = np.concatenate([lists.padded(found.shown, -np.inf), others], axis=1)[clear]
    drawn = np.broadcast_to(lists.distractors, others.shape)
    items = np.concatenate([lists.padded(lists.items, -1), drawn], axis=1)[clear]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    kept = np.take_along_axis(np.where(np.isfinite(scores), items, -1), order, axis=1)
    # of one text one object, which a pickle has once
    texts = {int(n): str(lists.texts.contents[n])[:_TEXT_CHARS] for n in np.unique(kept[kept >= 0])}
    spelled = [query for query, is_clear in zip(lists.spellings(), clear, strict=True) if is_clear]
    return {
        query: [texts[n] for n in row if n >= 0]
        for query, row in zip(spelled, kept.tolist(), strict=True)
    }


def note_start_vectors(
    folder: Path, embed_queries: Embed, embed_items: Embed, similarity: str = COSINE
) -> Mapping[str, float]:
    """Write what `evaluate_vectors` judges by: how the start ranks what held-out queries were
    shown, and what clicks say under the model of clicking that explains clicks best. Its labels
    take the place of those that `prepare_clicks` found without a start.

    That model is fitted to the training sessions alone, 400,000 showings of random queries where
    there are more. Returns each model's log-likelihood per click on queries that it was not fitted
    to, and which one was chosen. What is labelled keeps its label, which counts as clicks that
    leave no doubt. Where nothing was shown nothing is written: labels alone judge."""
    asked, splits = open_asked(folder), open_clicks(folder)
    if not len(asked.showings.pair):
        return {}
    row, queries = asked.pair_queries(), embed_queries(asked.queries)
    found = _similarities(asked, queries, embed_items, similarity)
    some = slice(64)
    unit = unit_of(
        similarity,
        torch.from_numpy(queries[some]),
        torch.from_numpy(embed_items(asked.items[some])),
    )
    scores = found.shown.astype(np.float64) / unit
    features = starting_features(scores, asked.position, asked.offsets)
    n_showings = np.bincount(row[asked.showings.pair], minlength=len(asked))
    is_labelled = np.isfinite(asked.label)
    is_asked = (n_showings > 0) | (np.bincount(row, is_labelled, len(asked)) > 0)
    learns = asked.in_split("train") & (n_showings > 0)
    is_fitted = learns & some_queries(np.where(learns, n_showings, 0), MOST_SHOWINGS)
    choice = choose(asked.showings, features, row, is_fitted[row])
    write_relevance(folder, asked, np.where(is_labelled, asked.label, choice.labels))
    known = np.where(is_labelled, asked.label, choice.relevance)
    certain = logit(np.clip(asked.label, _DOUBT, 1 - _DOUBT))
    evidence = np.where(is_labelled, certain, choice.evidence)
    for name, part in (("validation", splits.validation), ("test", splits.test)):
        own = asked.in_split(name)
        pairs = own[row]
        relevance = part.padded(known[pairs], 0.0)[is_asked[own]]
        Start(
            offsets=np.asarray(part.offsets),
            evidence=evidence[pairs],
            relevance=known[pairs],
            scores=scores[pairs],
            discount=found.of(own, pairs).discounts(part),
            features=features[pairs],
            is_asked=is_asked[own],
            scale=np.array(ideal_of_those_with_any(relevance)),
            unit=np.array(unit),
        ).write(folder, name)
    names = {kind: kind[0] + ("_trust" if kind[1] else "") for kind in choice.log_likelihoods}
    return {
        **{
            f"clicking_{names[kind]}_log_likelihood": value
            for kind, value in choice.log_likelihoods.items()
        },
        f"clicking_{names[choice.kind]}_chosen": 1.0,
    }


@dataclass(frozen=True)
class _Similarities:
    """How similar queries are to what they were shown, (n_pairs,), and to the distractors,
    (n_queries, n_distractors). is_presumed: which of those a query was not shown."""

    shown: NDArray[np.float32]
    others: NDArray[np.float32]
    is_presumed: Flags

    def of(self, queries: Flags, pairs: Flags) -> "_Similarities":
        """Return those of some queries, and their pairs."""
        return _Similarities(self.shown[pairs], self.others[queries], self.is_presumed[queries])

    def discounts(self, lists: ShownLists) -> PerQuery:
        return discounts(self.shown, self.others, self.is_presumed, lists.offsets)


def _similarities(
    lists: ShownLists, queries: Vectors, embed_items: Embed, similarity: str
) -> _Similarities:
    """Raises MethodError where one is not finite."""
    items, place = np.unique(np.concatenate([lists.items, lists.distractors]), return_inverse=True)
    vectors = embed_items(items)
    n_pairs, n_distractors = len(lists.items), len(lists.distractors)
    row, column = lists.pair_queries(), place[:n_pairs]
    of_all, of_pairs = similarity_functions(similarity)
    others = of_all(queries, vectors[place[n_pairs:]]).numpy()
    distractor = np.full(len(items), -1)
    distractor[place[n_pairs:]] = np.arange(n_distractors)
    is_distractor = distractor[column] >= 0
    is_presumed = np.ones(others.shape, dtype=np.bool_)
    is_presumed[row[is_distractor], distractor[column[is_distractor]]] = False
    shown = np.concatenate(
        [  # never all of queries x items, nor all pairs at once
            of_pairs(queries[row[chunk]], vectors[column[chunk]]).numpy()
            for chunk in (slice(n, n + _CHUNK) for n in range(0, n_pairs, _CHUNK))
        ]
    )
    if not (np.isfinite(shown).all() and np.isfinite(others).all()):
        raise MethodError("the model gives scores that are not finite: it diverged in training")
    return _Similarities(shown, others, is_presumed)


def _clear(lists: QueryLists) -> Flags:
    """Return (n_queries,) which have a probably relevant item."""
    is_relevant: Flags = lists.padded(lists.relevance, 0.0) >= RELEVANT_FROM
    return np.asarray(is_relevant.any(axis=1))


def _labelled_metrics(
    lists: QueryLists, found: _Similarities, queries: Flags
) -> Mapping[str, PerQuery]:
    """Return `ranking_metrics` of some queries, by labels, or the click model's probabilities."""
    shown = lists.padded(np.ones(len(lists.items), np.bool_), False)
    scores = np.concatenate([lists.padded(found.shown, 0.0), found.others], axis=1)
    judged = np.concatenate([shown, found.is_presumed], axis=1)
    nothing = np.zeros_like(found.others)
    relevance = np.concatenate([lists.padded(lists.relevance, 0.0), nothing], axis=1)
    return ranking_metrics(scores[queries], relevance[queries], judged[queries])
