"""The card of an iteration's best model: what it is made of, how good it is, how to use it.

It is written once the verdict is known, beside the model's own files, and stands in for the card
among these, which tells of the encoder alone."""

from collections.abc import Iterable, Mapping

from mlflow.entities import Run

from embedding_studio.tasks import Promotion
from embedding_studio.tracking import story
from embedding_studio.tracking.names import from_mlflow

_HEAD = "---\ntags:\n- embedding-studio\n---\n"
_PLAIN = "## How to load\n\nWith the fine-tuning method that made it.\n"


def write(
    encoder_card: str | None,
    promotion: Promotion,
    tags: Mapping[str, str],
    baseline: Run | None,
    best: Run,
    data: Run | None,
) -> str:
    """Return Markdown under YAML. tags: the experiment's; encoder_card: None where it has none."""
    text = encoder_card or _PLAIN
    if not (text.startswith("---\n") and "\n---\n" in text):
        text = _HEAD + text
    _, head, body = text.split("---\n", 2)
    figures = data.data.metrics if data else {}
    counts = {from_mlflow(name.removeprefix("data/")): f"{n:g}" for name, n in figures.items()}
    params = {from_mlflow(name): value for name, value in sorted(best.data.params.items())}
    return "\n".join(
        [
            f"---\n{head}---",
            f"# {tags['es.method']}",
            "",
            f"{story.verdict(promotion)}.",
            "",
            *_metrics(promotion, baseline, best),
            "",
            body.strip(),
            *_table("Parameters", ["parameter", "value"], params.items()),
            *_table("Data", ["count", "value"], sorted(counts.items())),
            "",
            f"Task {tags['es.task_id']}, batch {tags['es.batch_id']}, run {best.info.run_id}.",
            "",
        ]
    )


def _metrics(promotion: Promotion, baseline: Run | None, best: Run) -> list[str]:
    """Return a table of the metrics of both splits, and what the difference is worth."""
    before = baseline.data.metrics if baseline else {}
    after = best.data.metrics
    tested = [name for name in sorted(after) if name.startswith(story.TEST)]

    def row(name: str) -> tuple[str, ...]:
        values = (before.get(name), after.get(name))
        return (from_mlflow(name), *("" if v is None else f"{v:.4f}" for v in values))

    names = [name for test in tested for name in (test.removeprefix(story.TEST), test)]
    lines = _table("Metrics", ["metric", "before", "this model"], map(row, names))
    interval = promotion.delta_ci95
    if interval is not None:
        lines += [
            "",
            f"The difference of {promotion.metric_name} on the test split is "
            f"{promotion.delta:+.4f}, with a 95 % interval of {interval[0]:+.4f} to "
            f"{interval[1]:+.4f} over {promotion.test_queries} queries. Names without `test_` are "
            "of the validation split, by which the best trial was chosen.",
        ]
    return lines


def _table(title: str, columns: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return []
    return [
        "",
        f"## {title}",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *lines,
    ]
