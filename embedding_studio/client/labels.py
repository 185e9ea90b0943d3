"""Calls for what people and files say of items."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from embedding_studio.client.connection import REPORT_SECONDS, Connection, bulk_bodies
from embedding_studio.labels import Label
from embedding_studio.wire.labels import (
    LabelBody,
    LabelSetPage,
    LabelSetReport,
    LabelSetView,
    LabelsOutcome,
)


class LabelCalls(Connection):
    """What is learnt from and judged by beside clicks."""

    def put_labels(
        self, labels_id: str, labels: Iterable[Label], *, golden: bool | None = None
    ) -> LabelsOutcome:
        """Add labels to a set, in place of the grades that it has for the same queries and items.

        golden: whether the set is to guard every promotion; None leaves that as it is. Raises
        InvalidInput for wrong ones; what the requests before had is kept, and may be put again."""
        outcomes: list[LabelsOutcome] = []
        given = (LabelBody.of(label).model_dump(warnings=False) for label in labels)
        mark = json.dumps({"labels": [], "golden": golden}).encode()
        for body in (*bulk_bodies("labels", given), mark):
            headers = {"Content-Type": "application/json"}
            response = self._call("PUT", f"/labels/{labels_id}", content=body, headers=headers)
            outcomes.append(self._read(LabelsOutcome, response))
        counts = LabelsOutcome.model_fields
        return LabelsOutcome(
            **{name: sum(getattr(one, name) for one in outcomes) for name in counts}
        )

    def list_labels(self) -> Iterator[LabelSetView]:
        """Yield the sets of labels in the order of their names."""
        after_id: str | None = ""
        while after_id is not None:
            page = self._get(LabelSetPage, "/labels", after_id=after_id)
            yield from page.sets
            after_id = page.last_id

    def get_labels(self, labels_id: str) -> LabelSetReport:
        """Return what a set has: labels, queries, items, the highest grade. Raises NotFound."""
        path = f"/labels/{labels_id}"
        return self._read(LabelSetReport, self._call("GET", path, timeout=REPORT_SECONDS))

    def export_labels(self, labels_id: str, file: Path) -> None:
        """Write a set to a file, a label a line, as JSON that can be put again.

        The file appears, or is replaced, only once it is complete."""
        self._export(f"/labels/{labels_id}/export", file)

    def delete_labels(self, labels_id: str) -> None:
        """Delete a set. Raises Conflict while a task that has not ended names it."""
        self._call("DELETE", f"/labels/{labels_id}", fine=204)
