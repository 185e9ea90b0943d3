"""Tasks that name labels, and golden ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from embedding_studio.clickstream import SearchResult, normalize_query
from embedding_studio.clock import utc_now
from embedding_studio.engine.jobs import MethodRef, PrepareData, PrepareJudge
from embedding_studio.engine.labels import Shares, TakenLabels
from embedding_studio.engine.lease import Lease
from embedding_studio.errors import NotEnoughData
from embedding_studio.executors.base import Report, Verdict
from embedding_studio.items import Item
from embedding_studio.labels import Label
from embedding_studio.snapshot import SnapshotWriter
from embedding_studio.store import Store
from embedding_studio.store.memory import MemoryDocuments
from embedding_studio.store.sessions import SESSION
from embedding_studio.tasks import FineTuningTask, Promote, TaskStatus
from embedding_studio.tracking import story
from tests.iterations import TOYS, Bench, make_session

SHARES = Shares(0.15, 0.15, folds=2)


class Patient:
    """A lease that nobody takes away."""

    def patiently(self, call: Callable[..., Any], *given: Any) -> Any:
        return call(*given)

    def check(self) -> None:
        """Go on."""


LEASE = cast("Lease", Patient())


def labels_of(beginning: str, count: int, grade: float = 2.0) -> list[Label]:
    return [Label(f"{beginning} {n}", "item-0", grade) for n in range(count)]


def put(store: Store, labels_id: str, labels: Sequence[Label], golden: bool = False) -> None:
    store.items.put([Item("item-0", "item 0"), Item("item-1", "item 1")])
    store.labels.put(labels_id, labels, utc_now(), is_golden=golden)


@pytest.fixture
def store() -> Store:
    return Store(MemoryDocuments())


def taken(store: Store, folder: Path, **named: Any) -> TakenLabels:
    labels = TakenLabels(folder / "labels", **named)
    labels.take(store, LEASE, store.items.find)
    return labels


# -- what is taken, and how it is split -----------------------------------------------------------


def test_labels_come_with_contents_and_relevance(store: Store, tmp_path: Path) -> None:
    """Relevance is by the highest grade of the set; an item is as it was shown, or else as it is
    kept; one of which nothing is known has no content."""
    put(store, "a", [Label("q", "item-0", 3.0), Label("q", "item-1", 1.0), Label("r", "x", 0.0)])
    put(store, "b", [Label("q", "item-0", 9.0)])
    shown = [SearchResult("item-1"), SearchResult("item-1", meta={"text": "as shown"})]
    found = taken(store, tmp_path, learnt="a", judging="b").read("a", shown)
    assert {(one.query, one.result.object_id): one.relevance for one in found} == {
        ("q", "item-0"): 1.0,
        ("q", "item-1"): pytest.approx(1 / 3),
        ("r", "x"): 0.0,
    }
    assert {one.result.object_id: one.result.meta for one in found} == {
        "item-0": {"text": "item 0"},
        "item-1": {"text": "as shown"},
        "x": {},
    }


def test_the_digest_tells_whether_anything_changed(store: Store, tmp_path: Path) -> None:
    """Grades and contents of items, but not what other sets have."""
    put(store, "a", labels_of("query", 3))
    labels = TakenLabels(tmp_path / "labels", learnt="a")
    first = labels.take(store, LEASE, store.items.find)
    put(store, "other", labels_of("query", 3))
    assert labels.take(store, LEASE, store.items.find) == first
    store.items.put([Item("item-0", "new words")])
    second = labels.take(store, LEASE, store.items.find)
    put(store, "a", labels_of("query", 1, grade=1.0))
    assert len({first, second, labels.take(store, LEASE, store.items.find)}) == 3


@pytest.mark.parametrize("fold", [0, 1, None])
def test_nothing_is_learnt_of_what_judges(store: Store, tmp_path: Path, fold: int | None) -> None:
    """Whatever part is held out, and however the queries are spelled: neither to train on nor to
    choose by."""
    put(store, "learnt", [*labels_of("query", 60), *labels_of("JUDGE", 30), *labels_of("gold", 9)])
    put(store, "judging", labels_of("judge ", 30))
    put(store, "golden", labels_of("gold", 9))
    labels = taken(store, tmp_path, learnt="learnt", judging="judging", golden=("golden",))
    shares = Shares(0.15, 0.15, 2, fold)
    assert len(labels.held_out(shares)) == 39
    parts = labels.split(shares)
    for part in (parts.train, parts.validation):
        assert {label.query.split()[0] for label in part} == {"query"}
    assert (parts.test is parts.validation) is (fold is None)
    assert len(labels.judge("judging", shares)) == 30


@pytest.mark.parametrize("fold", [0, 1, None])
def test_what_is_learnt_may_judge_by_its_test_share(
    store: Store, tmp_path: Path, fold: int | None
) -> None:
    """These queries are held out in every fold, the others are learnt from."""
    put(store, "a", labels_of("query", 100))
    labels = taken(store, tmp_path, learnt="a", judging="a")
    shares = Shares(0.15, 0.15, 2, fold)
    judging = {label.query for label in labels.judge("a", shares)}
    assert 5 < len(judging) < 30
    assert labels.held_out(shares) == judging
    parts = labels.split(shares)
    learnt = {label.query for part in (parts.train, parts.validation) for label in part}
    assert not learnt & judging
    assert len(learnt) > 50 or fold == 1


def prepare(folder: Path, labels: TakenLabels, queries: Iterable[str], fold: int | None) -> Any:
    """Prepare sessions and labels for the toy method; return the queries of each part."""
    with SnapshotWriter(folder / "snapshot", find_items=lambda ids: {}) as writer:
        sessions = [make_session(n, query) for n, query in enumerate(queries)]
        writer.add([*map(SESSION.encode, sessions)])
    method, data = MethodRef("Taught", TOYS), folder / "data"
    job = PrepareData(method, folder / "snapshot", folder, data, {}, labels, 2, fold)
    prepared = job(_no_report)
    return prepared, method.load().load_data(data)


def _no_report(report: Report) -> Verdict:
    raise AssertionError("preparing reports nothing")


@pytest.mark.parametrize("fold", [0, 1, None])
def test_sessions_of_what_judges_are_held_out(
    store: Store, tmp_path: Path, fold: int | None
) -> None:
    """As labels are; what is to test is not trained on anyway, and stays."""
    put(store, "judging", labels_of("query", 30))
    labels = taken(store, tmp_path, judging="judging")
    queries = [f"Query {n}" for n in range(90)]
    prepared, parts = prepare(tmp_path, labels, queries, fold)
    held_out = {f"query {n}" for n in range(30)}
    assert not held_out & {normalize_query(query) for query in [*parts.train, *parts.validation]}
    assert prepared.figures["sessions"] == 90
    assert len(parts.train) > 5


def test_labels_stand_beside_sessions(store: Store, tmp_path: Path) -> None:
    """In the same part of the split, counted, and those without content named."""
    put(store, "a", [*labels_of("query", 90), Label("query 1", "nowhere", 1.0)])
    prepared, parts = prepare(
        tmp_path, taken(store, tmp_path, learnt="a"), [f"query {n}" for n in range(45)], 0
    )
    assert sum(map(len, parts.named().values())) == 90
    counted = sum(prepared.figures[f"{name}_labels"] for name in parts.named())
    assert (counted, prepared.figures["labels_left_out"]) == (91, 1)
    assert prepared.bare_items == ["nowhere"]


def test_labels_that_judge_need_relevant_queries(store: Store, tmp_path: Path) -> None:
    """Five to decide, one to guard; items without content are the method's to refuse."""
    put(store, "few", [*labels_of("query", 4), *labels_of("other", 9, grade=0.5)])
    put(store, "bare", [Label("q", "nowhere", 1.0)])
    with SnapshotWriter(tmp_path / "snapshot", find_items=lambda ids: {}):
        pass
    for labels_id, named in (("few", {"judging": "few"}), ("bare", {"golden": ("bare",)})):
        labels, folder = taken(store, tmp_path, **named), tmp_path / labels_id
        job = PrepareJudge(
            MethodRef("Taught", TOYS), tmp_path / "snapshot", folder, labels, labels_id
        )
        with pytest.raises(NotEnoughData, match=r"4 queries of labels 'few'|no label has an item"):
            job(_no_report)


# -- in an iteration -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["labels_id", "judge_labels_id"])
def test_a_method_without_labels_refuses_them(bench: Bench, name: str) -> None:
    """The task is an error that says so, and releases no batch."""
    put(bench.house.store, "judged", labels_of("query", 3))
    named: dict[str, Any] = {name: "judged"}
    task = bench.run_task("Toy", **named)
    assert task.status is TaskStatus.ERROR
    assert "'Toy' takes no labels" in (task.error or "")
    bench.worker.beat()
    (worker,) = bench.house.store.workers.seen(utc_now() - timedelta(minutes=1))
    assert "Toy" in worker.without_labels
    assert bench.house.store.clickstream.collecting_batch() is not None


def run(bench: Bench, **request: Any) -> FineTuningTask:
    task = bench.post_task("Taught", **request)
    assert bench.worker.work_once()
    return bench.house.store.tasks.get(task.id)


def scores(bench: Bench, task: FineTuningTask) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return the metrics of the starting model, and of the one that is served."""
    [baseline] = bench.runs(task, "baseline")
    assert task.best_model is not None
    return baseline.data.metrics, bench.mlflow.get_run(task.best_model.run_id).data.metrics


def test_a_task_learns_from_labels_alone(bench: Bench) -> None:
    """It takes no batch, and nothing needs to be collected; the note says what was learnt from."""
    put(bench.house.store, "judged", labels_of("query", 60))
    bench.post_sessions(count=3)
    task = run(bench, labels_id="judged")
    assert (task.error, task.status) == (None, TaskStatus.DONE)
    assert task.batch_id is None
    assert bench.house.store.clickstream.collecting_batch() is not None
    assert task.promotion is not None
    assert task.promotion.promoted
    assert task.promotion.sessions_needed is None
    [experiment] = bench.experiments()
    assert experiment.tags["es.labels"] == "judged"
    assert "| labels | judged |" in experiment.tags["mlflow.note.content"]
    assert "| batch |" not in experiment.tags["mlflow.note.content"]
    [data] = bench.runs(task, "data")
    assert not (Path(data.info.artifact_uri) / "report.html").exists()


def test_labels_decide_in_place_of_clicks(bench: Bench) -> None:
    """Clicks would promote what is worse on the queries of the labels; what they say is told."""
    put(bench.house.store, "judges", labels_of("gold", 20))
    bench.post_sessions()
    task = run(bench, judge_labels_id="judges")
    assert (task.error, task.status) == (None, TaskStatus.DONE)
    verdict = task.promotion
    assert verdict is not None
    assert not verdict.promoted
    assert (verdict.judge_labels_id, verdict.test_queries) == ("judges", 20)
    assert verdict.reason == "no better on the queries of labels 'judges'"
    assert verdict.delta < 0
    [by_clicks] = verdict.others
    assert (by_clicks.labels_id, by_clicks.change.delta > 0) == (None, True)
    assert "What is learnt from says 0.2" in story.verdict(verdict)
    before, after = scores(bench, task)
    assert before["test_judges_skill"] == pytest.approx(-0.2)
    assert before["test_skill"] == pytest.approx(0.2)
    assert after["test_skill"] > 0.2 > 0 > after["test_judges_skill"]
    promoted = run(bench, judge_labels_id="judges", batch_id=task.batch_id, promote=Promote.NEVER)
    assert promoted.promotion is not None
    assert promoted.promotion.judge_labels_id == "judges"


def test_a_model_is_promoted_by_labels(bench: Bench) -> None:
    """That judge, and of which a part is learnt from."""
    put(bench.house.store, "judges", labels_of("query", 100))
    task = run(bench, labels_id="judges", judge_labels_id="judges")
    assert (task.error, task.status) == (None, TaskStatus.DONE)
    assert task.promotion is not None
    assert task.promotion.promoted
    assert task.promotion.judge_labels_id == "judges"
    assert 5 < (task.promotion.test_queries or 0) < 30


def test_a_fall_on_golden_queries_blocks_promotion(bench: Bench) -> None:
    """Said in words, in figures and in MLflow; golden queries that hold block nothing, and those
    that cannot be scored are told of."""
    store = bench.house.store
    put(store, "well", labels_of("fine", 10), golden=True)
    store.labels.put("bare", [Label("q", "nowhere", 1.0)], utc_now(), is_golden=True)
    bench.post_sessions()
    first = run(bench)
    assert (first.error, first.status) == (None, TaskStatus.DONE)
    assert first.promotion is not None
    assert first.promotion.promoted
    assert [one.labels_id for one in first.promotion.others] == ["well"]
    before, after = scores(bench, first)
    assert before["test_well_skill"] == pytest.approx(0.2)
    assert after["test_well_skill"] > 0.2
    told = " ".join(one.event.detail for one in store.tasks.events(first.id))
    assert "the golden queries of 'bare' guard nothing: no label has an item" in told

    put(store, "loses", labels_of("gold", 10), golden=True)
    bench.post_sessions(start=100)
    second = run(bench)
    verdict = second.promotion
    assert verdict is not None
    assert not verdict.promoted
    assert "worse beyond chance on the golden queries of 'loses'" in verdict.reason
    assert {one.labels_id for one in verdict.others} == {"well", "loses"}


def test_nothing_is_learnt_from_golden_labels(bench: Bench) -> None:
    """A task that asks for it is an error."""
    put(bench.house.store, "golden", labels_of("query", 60), golden=True)
    task = run(bench, labels_id="golden")
    assert task.status is TaskStatus.ERROR
    assert "are golden, so nothing is learnt from them" in (task.error or "")


def test_too_few_labelled_queries_release_no_batch(bench: Bench) -> None:
    """Those that are to judge."""
    put(bench.house.store, "few", labels_of("query", 4))
    bench.post_sessions()
    task = run(bench, judge_labels_id="few")
    assert task.status is TaskStatus.ERROR
    assert "4 queries of labels 'few' that are to judge" in (task.error or "")
    assert bench.house.store.clickstream.collecting_batch() is not None
