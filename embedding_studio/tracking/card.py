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
            *_metrics(promotion),
            "",
            body.strip(),
            *_table("Parameters", ["parameter", "value"], params.items()),
            *_table("Data", ["count", "value"], sorted(counts.items())),
            "",
            f"Task {tags['es.task_id']}, {_learnt_from(tags)}, run {best.info.run_id}.",
            "",
        ]
    )


def _learnt_from(tags: Mapping[str, str]) -> str:
    batch_id, labels_id, made = (tags.get(f"es.{one}") for one in ("batch_id", "labels", "made"))
    batch = f"batch {batch_id}" if batch_id else ""
    if batch and made:
        batch += f" and those before it, sessions made {made}"
    return ", ".join(filter(None, [batch, f"labels {labels_id}" if labels_id else ""]))


def _metrics(promotion: Promotion) -> list[str]:
    """Return a table of the metrics before and after, and what it is about."""
    rows = [
        (
            one.name,
            f"{one.before:.4f}",
            f"{one.after:.4f}",
            f"{one.delta:+.4f}",
            f"{one.delta_ci95[0]:+.4f} to {one.delta_ci95[1]:+.4f}" if one.delta_ci95 else "",
        )
        for one in promotion.metrics
    ]
    columns = ["metric", "before", "after", "difference", "95 % interval"]
    return [
        *_table("Metrics", columns, rows),
        "",
        f"Judged by {story.judged_by(promotion)}. This model is {story.served(promotion)}.",
        *(f"Beware: {warning}." for warning in promotion.warnings),
    ]


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
