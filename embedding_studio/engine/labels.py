"""The labels of an iteration, as they were when its data was prepared."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from embedding_studio.clickstream import (
    SearchResult,
    Splits,
    has_content,
    normalize_query,
    part_of_query,
)
from embedding_studio.deletion import remove_tree
from embedding_studio.items import Item
from embedding_studio.labels import LabelledResult

if TYPE_CHECKING:  # trials, which only read labels, load no store
    from embedding_studio.engine.lease import Lease
    from embedding_studio.store import Store

_PAGE = 1000
_ITEMS = "items.json"


@dataclass(frozen=True, slots=True)
class Shares:
    """How queries are split: as `part_of_query` has it."""

    validation_share: float
    test_share: float
    folds: int = 1
    fold: int | None = 0

    def part_of(self, query: str) -> str:
        shares = self.validation_share, self.test_share
        return part_of_query(query, *shares, self.folds, self.fold)

    def is_in_test_share(self, query: str) -> bool:
        """Return whether a query is in the first part, whichever is held out."""
        return part_of_query(query, self.validation_share, self.test_share) == "test"


@dataclass(frozen=True, slots=True)
class TakenLabels:
    """Sets of labels, and the items that they name, in files of a folder.

    learnt: what is learnt from; judging: what decides the gate; golden: those that guard it, but
    for the judging one. Of the queries of these nothing is learnt; of one that is learnt from and
    judges, the queries of the test share judge."""

    reads: ClassVar = ("folder",)

    folder: Path
    learnt: str | None = None
    judging: str | None = None
    golden: tuple[str, ...] = ()

    @property
    def judges(self) -> tuple[str, ...]:
        """The sets that judge models, the judging one first."""
        return (*filter(None, [self.judging]), *self.golden)

    def take(
        self,
        store: "Store",
        lease: "Lease",
        find_items: Callable[[Collection[str]], Mapping[str, Item]],
    ) -> str:
        """Write them as they are now, in place of what the folder has; return a digest. Raises
        NotFound. find_items: returns items by their ids."""
        remove_tree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        digest, object_ids = hashlib.sha256(), dict[str, None]()
        for labels_id in sorted({*filter(None, [self.learnt]), *self.judges}):
            last = None
            with self._file(labels_id).open("wb") as lines:
                while page := lease.patiently(store.labels.page, labels_id, last):
                    lease.check()
                    for label in page:
                        line = _line(label.query, label.object_id, label.grade)
                        digest.update(line)
                        lines.write(line)
                        object_ids[label.object_id] = None
                    last = page[-1]
        wanted = [*object_ids]
        with (self.folder / _ITEMS).open("wb") as lines:
            for start in range(0, len(wanted), _PAGE):
                lease.check()
                for item in find_items(wanted[start : start + _PAGE]).values():
                    line = _line(item.object_id, item.content())
                    digest.update(line)
                    lines.write(line)
        return digest.hexdigest()

    def read(self, labels_id: str, shown: Iterable[SearchResult] = ()) -> list[LabelledResult]:
        """Return the labels of a set with the contents of their items: as they were shown, if they
        were, or else as items are kept. Those of which nothing is known have no content."""
        labels = [*_lines(self._file(labels_id))]
        named = {object_id for _, object_id, _ in labels}
        results = {object_id: SearchResult(object_id) for object_id in named}
        for object_id, content in _lines(self.folder / _ITEMS):
            if object_id in named:
                results[object_id] = SearchResult(object_id, meta=content)
        for result in shown:
            if result.object_id in named and has_content(result):
                results[result.object_id] = result
                named.discard(result.object_id)
        highest = max((grade for _, _, grade in labels), default=0.0) or 1.0
        return [
            LabelledResult(query, results[object_id], grade / highest)
            for query, object_id, grade in labels
        ]

    def held_out(self, shares: Shares) -> frozenset[str]:
        """Return the queries, normalized, of which nothing is learnt."""
        return frozenset(
            normalize_query(query)
            for labels_id in self.judges
            for query, _, _ in _lines(self._file(labels_id))
            if self._judges(labels_id, query, shares)
        )

    def split(
        self, shares: Shares, shown: Iterable[SearchResult] = ()
    ) -> Splits[Sequence[LabelledResult]]:
        """Return what is learnt from, split by query as sessions are. Of what judges nothing is to
        train on or to choose by. Where nothing is to test, validation stands in for the test."""
        parts: dict[str, list[LabelledResult]] = {name: [] for name in Splits.of(str).named()}
        held_out = self.held_out(shares)
        for label in self.read(self.learnt, shown) if self.learnt else ():
            name = shares.part_of(label.query)
            if name == "test" or normalize_query(label.query) not in held_out:
                parts[name].append(label)
        if shares.fold is None:
            parts["test"] = parts["validation"]
        return Splits(**parts)

    def judge(
        self, labels_id: str, shares: Shares, shown: Iterable[SearchResult] = ()
    ) -> list[LabelledResult]:
        """Return the labels of a set that judge."""
        labels = self.read(labels_id, shown)
        return [label for label in labels if self._judges(labels_id, label.query, shares)]

    def _judges(self, labels_id: str, query: str, shares: Shares) -> bool:
        return labels_id != self.learnt or shares.is_in_test_share(query)

    def _file(self, labels_id: str) -> Path:
        return self.folder / f"{labels_id}.labels"


def _line(*values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _lines(file: Path) -> Iterator[Any]:
    with file.open("rb") as lines:
        yield from map(json.loads, lines)
