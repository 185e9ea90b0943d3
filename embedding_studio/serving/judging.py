"""What models find for queries, and how good that is by labels."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.errors import InvalidInput
from embedding_studio.labels import RELEVANT_FROM
from embedding_studio.serving.batching import Vectors
from embedding_studio.serving.export import Encode
from embedding_studio.training.metrics import ranking_metrics

TOP = 10


@dataclass(frozen=True)
class Catalogue:
    """Items that can be found, by number."""

    ids: Sequence[str]
    texts: Sequence[str]


@dataclass(frozen=True)
class Judged:
    """Queries with what labels say of them. relevance: (n_queries, n_items), shares of the highest
    grade; what has no label is 0."""

    queries: Sequence[str]
    relevance: NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a model finds for queries. scores: (n_queries, n_items); top: (n_queries, at most 10),
    the numbers of items, the best first."""

    scores: NDArray[np.float32]
    top: NDArray[np.int64]

    @classmethod
    def by(
        cls, encode: Encode, is_cosine: bool, queries: Sequence[str], items: Catalogue
    ) -> "Found":
        scores = similarities(encode("query", queries), encode("document", items.texts), is_cosine)
        return cls(scores, np.argsort(-scores, axis=1, kind="stable")[:, :TOP])


def similarities(queries: Vectors, items: Vectors, is_cosine: bool) -> NDArray[np.float32]:
    """Return (n_queries, n_items), of vectors of any length."""
    if is_cosine:
        queries, items = (
            one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            for one in (queries, items)
        )
    found: NDArray[np.float32] = (queries @ items.T).astype(np.float32)
    return found


def read_labels(client: EmbeddingStudioClient, labels_id: str, items: Catalogue) -> Judged:
    """Return the queries of a set that have a relevant item among those, with the labels of these.

    Raises NotFound; InvalidInput when none has."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.ndjson"
        client.export_labels(labels_id, file)
        labels = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    highest = max((label["grade"] for label in labels), default=0.0)
    places = {object_id: number for number, object_id in enumerate(items.ids)}
    grades: dict[str, dict[int, float]] = {}
    for label in labels:
        if label["object_id"] in places:
            found = grades.setdefault(label["query"], {})
            found[places[label["object_id"]]] = label["grade"] / highest if highest else 0.0
    queries = [query for query, found in grades.items() if max(found.values()) >= RELEVANT_FROM]
    if not queries:
        raise InvalidInput(
            f"no query of the labels {labels_id!r} has a relevant item among these "
            f"{len(items.ids)}: are their texts kept as items, or in the file?"
        )
    relevance = np.zeros((len(queries), len(items.ids)))
    for row, query in enumerate(queries):
        for place, grade in grades[query].items():
            relevance[row, place] = grade
    return Judged(queries, relevance)


def metrics_of(found: Found, judged: Judged) -> Mapping[str, NDArray[np.float64]]:
    """Return the ranking metrics of each query, all items being ranked."""
    return ranking_metrics(found.scores, judged.relevance)
