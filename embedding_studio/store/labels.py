"""Labels as they are kept: a document each, and one for each set of them.

A set that is deleted loses its name first. From then on nothing joins it, and whoever comes by
deletes what it held."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from itertools import groupby
from operator import itemgetter

from embedding_studio.clickstream import Usage, normalize_query
from embedding_studio.errors import Conflict, InvalidInput, unknown
from embedding_studio.labels import (
    RELEVANT_FROM,
    Label,
    LabelConflicts,
    LabelCounts,
    LabelSet,
    LabelsPut,
    check_labels_id,
)
from embedding_studio.store.batches import NOT_ENDED, pages
from embedding_studio.store.codec import Codec
from embedding_studio.store.documents import (
    Document,
    Documents,
    Filter,
    Kind,
    above,
    absent,
    among,
    new_id,
)
from embedding_studio.store.projects import Projects
from embedding_studio.store.tasks import TASKS
from embedding_studio.store.usage import json_size

SETS = Kind("label_sets", unique=(("project", "labels_id"),), indexes=(("project", "labels_id"),))
"""`bytes` is what a set and its labels take."""
LABELS = Kind("labels", indexes=(("set", "id"),))
"""An id is its set's, a hash of the query and the item's: the labels of a query lie together."""
SET, LABEL = Codec(LabelSet), Codec(Label)
PAGE = 1000
EXAMPLES = 5
"""How many conflicts are told."""
_REST = 48
"""Bytes of a label beside its query and item, as JSON, about."""


class Labels:
    """The labels of a project. What they take counts as what its sessions do."""

    def __init__(self, documents: Documents, project: str) -> None:
        self._documents = documents
        self._project = project
        self._projects = Projects(documents)

    def put(
        self,
        labels_id: str,
        labels: Sequence[Label],
        now: datetime,
        *,
        is_golden: bool | None = None,
        most: Usage | None = None,
    ) -> LabelsPut:
        """Add labels to a set, which begins with its first, in place of the grades that it has for
        the same queries and items; of several such the last counts. Queries that are split as one
        are one, spelled as they first came.

        is_golden: None leaves that as it is; a new set is not. most: what the project may hold.
        Raises TooManyRequests, and keeps nothing, where what is new would be too much, give or take
        what others add at the same time; InvalidInput; Conflict where the set is deleted meanwhile.
        """
        check_labels_id(labels_id)
        self._complete()
        put = partial(self._put, labels_id, labels, now, is_golden, most)
        answer = None
        while answer is None:
            answer = self._documents.together(put)
        return answer

    def _put(
        self,
        labels_id: str,
        labels: Sequence[Label],
        now: datetime,
        is_golden: bool | None,
        most: Usage | None,
    ) -> LabelsPut | None:
        """Return what came of it; None, and nothing kept, where another has begun the set."""
        known = self._named(labels_id)
        set_id = known["id"] if known else new_id()
        begun = SET.encode(LabelSet(labels_id, is_golden or False, now))
        begun_size = 0 if known else json_size(begun)
        waiting = {one["id"]: one for one in (_document(set_id, label) for label in labels)}
        there = {
            one["id"]: one["grade"]
            for some in pages(waiting)
            for one in self._documents.find(LABELS, {"id": among(some)})
        }
        new = [one for its_id, one in waiting.items() if its_id not in there]
        reserved = begun_size + sum(map(_size, new))
        self._projects.reserve(self._project, Usage(0, reserved), most, other_bytes=reserved)
        its_set = {**begun, "id": set_id, "project": self._project, "bytes": 0}
        if not known and not self._documents.insert_one(SETS, its_set):
            self._projects.give_back_bytes(self._project, reserved)
            return None
        created = self._insert(new)
        changed = defaultdict[float, list[str]](list)  # by their grades, which are few
        for its_id, one in waiting.items():
            if its_id not in created and there.get(its_id) != one["grade"]:
                changed[one["grade"]].append(its_id)
        for grade, ids in changed.items():
            for some in pages(ids):
                self._documents.change_all(LABELS, {"id": among(some)}, {"grade": grade})
        grown = begun_size + sum(_size(waiting[its_id]) for its_id in created)
        golden = {} if is_golden is None else {"is_golden": is_golden}
        as_named: Filter = {"id": set_id, "labels_id": labels_id}
        if self._documents.change(SETS, as_named, set=golden, add={"bytes": grown}) is None:
            self._documents.delete(LABELS, {"set": set_id})
            self._projects.give_back_bytes(self._project, reserved)
            raise Conflict(f"labels {labels_id!r} were deleted meanwhile: put them again")
        self._projects.give_back_bytes(self._project, reserved - grown)
        updated = sum(map(len, changed.values()))
        return LabelsPut(len(created), updated, len(waiting) - len(created) - updated)

    def _insert(self, documents: Sequence[Document]) -> set[str]:
        """Insert labels, and return the ids of those that nobody else has put. Raises
        InvalidInput."""
        answers = self._documents.insert(LABELS, documents) if documents else []
        for one, answer in zip(documents, answers, strict=True):
            if isinstance(answer, InvalidInput):
                named = f"query {one['query']!r}, item {one['object_id']!r}"
                raise InvalidInput(f"the label of {named}: {answer}")
        return {one["id"] for one, is_in in zip(documents, answers, strict=True) if is_in}

    def get(self, labels_id: str) -> LabelSet:
        """Return what is known of a set. Raises NotFound."""
        return SET.decode(self._get(labels_id))

    def sets(self, after_id: str = "", limit: int | None = None) -> list[LabelSet]:
        """Return the sets of the project in the order of their names, from behind one on."""
        behind: Filter = {"project": self._project, "labels_id": above(after_id)}
        return [
            *map(SET.decode, self._documents.find(SETS, behind, sort=("labels_id",), limit=limit))
        ]

    def page(self, labels_id: str, after: Label | None, limit: int = PAGE) -> list[Label]:
        """Return up to `limit` labels of a set, from behind one on, those of a query one after the
        other. Raises NotFound."""
        set_id = self._get(labels_id)["id"]
        last = "" if after is None else _document(set_id, after)["id"]
        behind: Filter = {"set": set_id, "id": above(last)}
        return [*map(LABEL.decode, self._documents.find(LABELS, behind, sort=("id",), limit=limit))]

    def read(self, labels_id: str) -> Iterator[Label]:
        """Yield the labels of a set, those of a query one after the other. Raises NotFound."""
        last = None
        while page := self.page(labels_id, last):
            yield from page
            last = page[-1]

    def count(self, labels_id: str) -> LabelCounts:
        """Return what is in a set, which is read through. Raises NotFound."""
        items: set[str] = set()
        best: list[float] = []  # of each query
        labels, last = 0, None
        for label in self.read(labels_id):
            if (query := normalize_query(label.query)) != last:
                best.append(0.0)
            labels, last = labels + 1, query
            best[-1] = max(best[-1], label.grade)
            items.add(label.object_id)
        highest = max(best, default=0.0)
        relevant = sum(grade >= RELEVANT_FROM * highest > 0 for grade in best)
        return LabelCounts(labels, len(best), relevant, len(items), highest)

    def conflicts(self, labels_id: str, other_id: str) -> LabelConflicts:
        """Return the queries and items on which two sets are at odds; both are read through. Raises
        NotFound."""
        pairs, examples = 0, list[tuple[str, str]]()
        both = heapq.merge(*map(self._judged, (labels_id, other_id)), key=itemgetter(0))
        for _, found in groupby(both, itemgetter(0)):
            (_, label, is_relevant), *others = found
            if any(other[2] != is_relevant for other in others):
                pairs += 1
                if pairs <= EXAMPLES:
                    examples.append((label.query, label.object_id))
        return LabelConflicts(pairs, tuple(examples))

    def _judged(self, labels_id: str) -> Iterator[tuple[str, Label, bool]]:
        """Yield the labels of a set in the order of their ids without the set's, with whether each
        is relevant."""
        least = RELEVANT_FROM * self.count(labels_id).highest_grade
        for label in self.read(labels_id):
            yield _document("", label)["id"], label, label.grade >= least > 0

    def delete(self, labels_id: str) -> None:
        """Delete a set. Raises NotFound, and Conflict while a task that has not ended names it."""
        as_seen: Filter = {"id": self._get(labels_id)["id"], "labels_id": labels_id}
        self._ensure_free(labels_id)
        self._documents.change(SETS, as_seen, set={"labels_id": None})
        self._complete()

    def _ensure_free(self, labels_id: str) -> None:
        for field in ("labels_id", "judge_labels_id"):
            which: Filter = {"project": self._project, "status": NOT_ENDED, field: labels_id}
            if (task := self._documents.find_one(TASKS, which)) is not None:
                raise Conflict(
                    f"task {task['id']} names labels {labels_id!r} and has not ended: wait for it, "
                    "or cancel it"
                )

    def _complete(self) -> None:
        """Delete what deleted sets still hold."""
        for gone in self._documents.find(SETS, {"project": self._project, "labels_id": absent}):
            self._documents.delete(LABELS, {"set": gone["id"]})
            if self._documents.delete(SETS, {"id": gone["id"]}):
                self._projects.give_back_bytes(self._project, gone["bytes"])

    def _named(self, labels_id: str) -> Document | None:
        return self._documents.find_one(SETS, {"project": self._project, "labels_id": labels_id})

    def _get(self, labels_id: str) -> Document:
        if (found := self._named(labels_id)) is None:
            raise unknown("set of labels", labels_id)
        return found


def _document(set_id: str, label: Label) -> Document:
    query = normalize_query(label.query).encode("utf-8", "surrogatepass")
    its_id = f"{set_id}:{hashlib.sha256(query).hexdigest()[:32]}:{label.object_id}"
    # the same for every grade and spelling
    size = len(query) + json_size(label.object_id) + _REST
    return {**LABEL.encode(label), "id": its_id, "set": set_id, "size": size}


def _size(document: Document) -> int:
    size: int = document["size"]
    return size
