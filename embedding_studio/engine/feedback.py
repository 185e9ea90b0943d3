"""What an iteration learns from and is judged by: found, prepared as it is now, and released."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_studio.clickstream import BatchStatus, SessionBatch, Splits
from embedding_studio.deletion import remove_tree
from embedding_studio.engine.jobs import BaselineResult, PrepareData, PrepareJudge
from embedding_studio.engine.labels import TakenLabels
from embedding_studio.engine.snapshot import take_snapshot
from embedding_studio.errors import Conflict, IterationError, MethodError, NotEnoughData
from embedding_studio.labels import GOLDEN_TEACH_NOTHING, TAKES_NO_LABELS
from embedding_studio.loaders.contents import Contents
from embedding_studio.tasks import TaskEventKind, release_id_of

if TYPE_CHECKING:
    from embedding_studio.engine.attempt import Attempt

SPLITS = tuple(Splits.of(str).named())


@dataclass(frozen=True, slots=True)
class Data:
    """What the trials learn from, as it lies in the workspace."""

    #: of the sessions and labels that it was prepared from
    digest: str
    figures: Mapping[str, float]
    #: where what judges lies, by the names of the sets of labels
    judges: Mapping[str, Path]
    #: the report on the sessions, as HTML
    page: str
    #: how the starting model did on it; None if that was not tried yet
    start: BaselineResult | None = None


class Feedback:
    """The sessions and labels of one attempt at a task."""

    def __init__(self, attempt: "Attempt") -> None:
        self._house, self._lease, self._workspace = attempt.house, attempt.lease, attempt.workspace
        self._task, self._method, self._folds = attempt.task, attempt.method, attempt.folds
        self._record, self._warn = attempt.record, attempt.warn
        self._release_id = release_id_of(self._task.id)
        self._taken_id = self._task.batch_id
        self._labels = TakenLabels(
            self._workspace.labels, self._task.labels_id, self._task.judge_labels_id, self._golden()
        )

    def _golden(self) -> tuple[str, ...]:
        """Return the golden labels of the project, where the method takes labels."""
        if not self._method.learns_from_labels:
            return ()
        sets = self._lease.patiently(self._house.store.labels.sets)
        golden = [one.labels_id for one in sets if one.is_golden]
        return tuple(one for one in golden if one != self._task.judge_labels_id)

    def check(self) -> None:
        """Raise MethodError where the task names labels and the method takes none; NotFound."""
        if self._task.named_labels and not self._method.learns_from_labels:
            raise MethodError(f"{self._method.meta.name!r} {TAKES_NO_LABELS}")
        for labels_id in self._task.named_labels:
            found = self._lease.patiently(self._house.store.labels.get, labels_id)
            if found.is_golden and labels_id == self._task.labels_id:
                raise IterationError(f"labels {labels_id!r} {GOLDEN_TEACH_NOTHING}")

    def find(self) -> SessionBatch | None:
        """Return the batch to learn from: the one that the task names, or that an earlier attempt
        released for it, else the one now collecting. Of a task with a time range, the latest. None
        where the task learns from labels alone."""
        clickstream, named = self._house.store.clickstream, self._task.batch_id
        if self._task.is_without_sessions:
            return None
        if named is not None:
            batch = self._lease.patiently(clickstream.get_batch, named)
            if batch.status is not BatchStatus.RELEASED:
                raise Conflict(
                    f"batch {named} is still collecting: release it, then restart the task"
                )
            return batch
        released = self._lease.patiently(clickstream.find_release, self._release_id)
        if released is not None:  # before the attempt could say so
            self._note_release(released)
            return released
        collecting, made = (
            self._lease.patiently(clickstream.collecting_batch),
            self._task.time_range,
        )
        if made is not None and (collecting is None or not made.reaches(self._task.created_at)):
            batches = self._lease.patiently(clickstream.of_range, made)
            collecting = batches[-1] if batches else None
        if collecting is None:
            raise Conflict(
                "no batch is collecting, so there is nothing to learn from: post sessions, then "
                "restart the task"
            )
        return collecting

    def has_taken(self, batch: SessionBatch | None) -> bool:
        """Return whether a batch is the task's, released and for good."""
        return batch is not None and batch.batch_id == self._taken_id

    def prepare(self, batch: SessionBatch | None, former: Data | None = None) -> Data:
        """Prepare the sessions of a batch, of all that the task names, or of the time range that
        ends with it, and labels, as they are now, for all trials. What was prepared of the same
        stays."""
        snapshot, made = self._workspace.snapshot, self._task.time_range
        batches = [] if batch is None else [batch]
        if made is not None:
            batches = self._lease.patiently(self._house.store.clickstream.of_range, made, batch)
        ids = [*self._task.batch_ids] or [one.batch_id for one in batches]
        store, patiently = self._house.store, self._lease.patiently
        with Contents(
            lambda ids: patiently(store.items.find, ids), self._house.settings, self._lease.check
        ) as contents:
            digest, count = take_snapshot(store, self._lease, ids, snapshot, contents.find, made)
            contents.require_most()
            digest += self._labels.take(store, self._lease, contents.find)
        if made is not None and not count:
            raise NotEnoughData(f"no session was made {made}: post some, or ask for more time")
        if former is not None and former.digest == digest:
            return former
        remove_tree(self._workspace.data, ignore_errors=True)
        prepared = self._workspace.run(self.job(self._workspace.data, fold=0))
        judges = self._prepare_judges()
        sessions = int(prepared.figures["sessions"])
        labels = int(sum(prepared.figures.get(f"{name}_labels", 0) for name in SPLITS))
        told = f"{sessions} sessions{f' made {made}' if made else ''}"
        told += f" and {labels} labels" if self._task.labels_id else ""
        self._record(
            TaskEventKind.DATA_PREPARED,
            f"{told} are prepared; {prepared.events.tell() or 'every event counts'}",
            {
                "sessions": sessions,
                "batches": len(ids),
                "labels": labels,
                **prepared.events.as_data(),
            },
        )
        if missing := contents.told():
            self._warn(missing)
        if left_out := int(prepared.figures.get("labels_left_out", 0)):
            named = ", ".join(map(repr, prepared.bare_items))
            self._warn(
                f"{left_out} labels are left out, for the method finds no content of their items "
                f"({named or 'each has some, but not what it takes'}): put them as items"
            )
        return Data(digest, {**prepared.figures, "batches": len(ids)}, judges, prepared.page)

    def _prepare_judges(self) -> dict[str, Path]:
        """Prepare the labels that judge, and return where; golden ones that cannot are told of."""
        place, prepared = self._workspace, dict[str, Path]()
        remove_tree(place.judges, ignore_errors=True)
        for labels_id in self._labels.judges:
            folder = place.judges / labels_id
            job = PrepareJudge(place.method, place.snapshot, folder, self._labels, labels_id)
            try:
                place.run(job)
            except NotEnoughData as error:
                if labels_id == self._task.judge_labels_id:
                    raise
                self._warn(f"the golden queries of {labels_id!r} guard nothing: {error}")
            else:
                prepared[labels_id] = folder
        return prepared

    def job(self, folder: Path, fold: int | None) -> PrepareData:
        """Return the job that prepares the sessions, one part of the queries held out."""
        place, weights = self._workspace, self._task.event_weights or {}
        labels, folds = self._labels, self._folds
        return PrepareData(
            place.method, place.snapshot, place.start, folder, weights, labels, folds, fold
        )

    def release(self, batch: SessionBatch | None) -> SessionBatch | None:
        """Release the batch that is prepared, if there is one and it is not yet. Raises Conflict
        when another release took it, unless the task has a time range, from which that takes
        nothing."""
        self._lease.beat()
        self._lease.check_stop()  # a task that was ended by now takes nothing along
        if batch is None:
            return None
        clickstream, now = self._house.store.clickstream, self._house.clock()
        if batch.status is BatchStatus.COLLECTING:
            try:
                batch = self._lease.patiently(
                    clickstream.release, self._release_id, now, batch.batch_id
                )
            except Conflict:
                if self._task.time_range is None:
                    raise
                batch = self._lease.patiently(clickstream.get_batch, batch.batch_id)
        self._note_release(batch)
        return batch

    def _note_release(self, batch: SessionBatch) -> None:
        self._record(
            TaskEventKind.BATCH_RELEASED,
            f"batch {batch.batch_id} is released, with {batch.session_count} sessions",
            {"batch_id": batch.batch_id, "sessions": batch.session_count},
            batch_id=batch.batch_id,
        )
        self._taken_id = batch.batch_id
