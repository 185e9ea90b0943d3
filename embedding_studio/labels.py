"""What people and files say of items for queries: labels, in sets that have a name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from embedding_studio.clickstream import SearchResult, normalize_query
from embedding_studio.errors import InvalidInput

RELEVANT_FROM = 0.5
"""The share of the highest grade from which an item counts as relevant."""
GOLDEN_TEACH_NOTHING = "are golden, so nothing is learnt from them: name them as those that judge"
TAKES_NO_LABELS = (
    "takes no labels, to learn from or be judged by: leave labels_id and judge_labels_id out, or "
    "name another method"
)
LABELS_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Label:
    """How relevant an item is for a query, as a person or a file says."""

    query: str
    object_id: str
    #: finite and at least 0; of a set the highest is wholly relevant, 0 is not at all
    grade: float


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Labels that are put, learnt from and judged by together.

    is_golden: every iteration of the project scores its queries, learns from none of them, and
    promotes no model that got worse on them."""

    labels_id: str
    is_golden: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What is in a set of labels: distinct queries, as they are split, and distinct items.

    relevant_queries: those that have a relevant item, from which alone can be learnt and judged."""

    labels: int
    queries: int
    relevant_queries: int
    items: int
    highest_grade: float


@dataclass(frozen=True, slots=True)
class LabelConflicts:
    """Queries and items that are relevant by one set of labels and not by another.

    examples: the first of them, as a query and an item's id."""

    pairs: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LabelsPut:
    """What came of labels that were put."""

    created: int
    updated: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class LabelledResult:
    """A label as methods get it: the item with its content, and how relevant it is, in [0, 1]."""

    query: str
    result: SearchResult
    #: its grade, by the highest of its set
    relevance: float


def relevant_queries(labels: Iterable[LabelledResult]) -> int:
    """Return how many queries have a relevant item."""
    relevant = (label.query for label in labels if label.relevance >= RELEVANT_FROM)
    return len(set(map(normalize_query, relevant)))


def check_labels_id(labels_id: str) -> str:
    """Return the name of a set of labels. Raises InvalidInput if it cannot be one."""
    if not LABELS_ID.fullmatch(labels_id):
        raise InvalidInput(
            f"{labels_id!r} cannot be the name of labels: it takes 1 to 100 of letters of ASCII, "
            "digits, ., _ and -, beginning with a letter or a digit"
        )
    return labels_id
