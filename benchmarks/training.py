"""Our training loop against SentenceTransformerTrainer: `python -m benchmarks.training`.

Both fine-tune the packaged all-MiniLM-L6-v2 on clicks of the generated corpus. First they take the
same (query, clicked item) pairs with in-batch negatives alone, in turns, for pairs per second. Then
each learns from the same sessions as it would by itself, for the time until the held-out nDCG@10
(against true relevance, over the whole corpus, off the clock) is what the trainer's is in the end.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from benchmarks.clicks import (
    MODEL,
    TEST_SHARE,
    VALIDATION_SHARE,
    Arena,
    prepared,
    with_clicks_as_labels,
)
from embedding_studio.clickstream import Session, Splits, split_by_query
from embedding_studio.demo.searchers import Behaviour
from embedding_studio.training.data import QueryLists
from embedding_studio.training.encoder import fast_arithmetic, load_encoder
from embedding_studio.training.inputs import chunks_of_like_length
from embedding_studio.training.loop import (
    TrainingPlan,
    learn_from,
    linear_schedule,
    optimizer_of,
)
from embedding_studio.training.towers import BiEncoder, Tower

TRAINER_BATCH = 32
PAIRS = TrainingPlan(epochs=1, negatives_per_click=0)
OURS = TrainingPlan(epochs=3)
OUR_FROZEN_LAYERS, OUR_RATE = 4, 4e-4
TRAINER_RATES = (1e-4, 2e-4)
TRAINER_SAMPLERS = ("batch_sampler", "no_duplicates")


@dataclass(frozen=True)
class Clicks:
    arena: Arena
    sessions: list[Session]
    data: Splits[QueryLists]

    @classmethod
    def simulated(cls, count: int, seed: int, folder: Path) -> "Clicks":
        arena = Arena("catalogue", load_encoder(MODEL))
        sessions = arena.sessions(count, seed, Behaviour())
        return cls(arena, sessions, prepared(arena.model, sessions, folder / "data"))

    def pairs(self) -> tuple[list[str], list[str]]:
        """Return the text of each training query and of the clicked item, once per click."""
        train = split_by_query(self.sessions, VALIDATION_SHARE, TEST_SHARE).train
        rows = [
            (session.search_query, str(result.meta["text"]))
            for session in train
            for result in session.search_results
            if result.object_id in session.clicked_ids()
        ]
        return [query for query, _ in rows], [item for _, item in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="of taking turns")
    parser.add_argument("--pairs", type=int, default=1500, help="in a round, for the trainer")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help="that the trainer has to learn; 0: no such contest",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        clicks = Clicks.simulated(arguments.sessions, arguments.seed, Path(folder))
        speeds = compare_speed(clicks, arguments.rounds, arguments.pairs, console)
        quality = (
            compare_quality(clicks, arguments.seconds, arguments.seed, console)
            if arguments.seconds
            else {}
        )
    console.print(json.dumps({**speeds, **quality}), soft_wrap=True, highlight=False)


# -- examples per second ------------------------------------------------------------------------


def compare_speed(clicks: Clicks, rounds: int, pairs: int, console: Console) -> dict[str, float]:
    """Let every contestant run for a while, in turns, and compare within each turn."""
    lists = with_clicks_as_labels(clicks.data).train
    forgetful = replace(lists, texts=replace(lists.texts, folder=None))
    contestants: dict[str, Callable[[], float]] = {
        "trainer, fp32": lambda: trainer_speed(clicks, pairs, bf16=False),
        "trainer, bf16": lambda: trainer_speed(clicks, pairs, bf16=True),
        "ours, all layers": lambda: our_speed(lists, PAIRS, 0),
        "ours, 4 frozen": lambda: our_speed(lists, PAIRS, 4),
        "ours, 4 frozen, no cache": lambda: our_speed(forgetful, PAIRS, 4),
        "ours, all layers, 2 negatives": lambda: our_speed(
            lists, replace(PAIRS, negatives_per_click=2), 0
        ),
        "matrix products alone": lambda: matmul_speed(lists, PAIRS),
    }
    seconds_to_keep = time.perf_counter()
    Tower(load_encoder(MODEL), lists.texts, 4, learning_rate=1e-4)
    seconds_to_keep = time.perf_counter() - seconds_to_keep
    turns = [{name: run() for name, run in contestants.items()} for _ in range(rounds)]

    best_trainer = max(
        ("trainer, fp32", "trainer, bf16"),
        key=lambda name: statistics.median(t[name] for t in turns),
    )

    def ratio(name: str, other: str = best_trainer) -> float:
        return round(statistics.median(turn[name] / turn[other] for turn in turns), 3)

    table = Table(title="(query, clicked item) pairs per second")
    for column in ("", "median", "least", "most", f"times {best_trainer}"):
        table.add_column(column)
    for name in contestants:
        speeds = [turn[name] for turn in turns]
        figures = (statistics.median(speeds), min(speeds), max(speeds))
        table.add_row(name, *(f"{figure:.0f}" for figure in figures), f"{ratio(name):.2f}")
    console.print(table)
    console.print(f"to compute and keep what 4 layers make of all texts: {seconds_to_keep:.1f} s")
    return {
        "examples_per_s_ratio": ratio("ours, all layers"),
        "examples_per_s_ratio_frozen4": ratio("ours, 4 frozen"),
        "matmul_floor_share": ratio("ours, all layers", "matrix products alone"),
        "seconds_to_keep_4_layers": round(seconds_to_keep, 2),
    }


def our_speed(lists: QueryLists, plan: TrainingPlan, frozen_layers: int) -> float:
    """Return positives per second of one epoch."""
    encoder = encoder_for(lists, frozen_layers, 1e-4)
    optimizer = optimizer_of(encoder, plan)
    encoder.train()
    first, *batches = plan.batches(lists).shuffled(np.random.default_rng(0))
    learn_from(first, encoder, plan, optimizer)  # memory is allocated, kernels are chosen
    start = time.perf_counter()
    for batch in batches:
        learn_from(batch, encoder, plan, optimizer)
    seconds = time.perf_counter() - start
    return sum(int((batch.relevance > 0).sum()) for batch in batches) / seconds


def trainer_speed(clicks: Clicks, count: int, bf16: bool) -> float:
    """Return pairs per second, from the end of the first step to the end of the last."""
    lists = clicks.data.train
    row = lists.pair_queries()
    clicked = np.flatnonzero(np.asarray(lists.clicked) > 0)
    chosen = np.random.default_rng(0).permutation(clicked)[:count]
    words = lists.texts.contents
    steps = Steps()
    trainer = trainer_of(
        load_encoder(MODEL),
        [words[text] for text in np.asarray(lists.queries)[row[chosen]]],
        [words[text] for text in np.asarray(lists.items)[chosen]],
        bf16=bf16,
        callback=steps,
    )
    trainer.train()
    return TRAINER_BATCH * (len(steps.times) - 1) / (steps.times[-1] - steps.times[0])


def matmul_speed(lists: QueryLists, plan: TrainingPlan) -> float:
    """Return positives per second if a step were nothing but the matrix products of its layers.

    For each pass of T padded tokens: 4 (T, d) x (d, d) and 2 (T, d) x (d, 4d) products forward and
    twice as many backward, and the attention's; in bfloat16 where training uses it.
    """
    width, heads, inner, layers = 384, 12, 1536, 6
    batches = list(plan.batches(lists).shuffled(np.random.default_rng(0)))[1:]
    with fast_arithmetic(torch.device("cpu")) as autocast:
        kind = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    del autocast
    square, wide = torch.randn(width, width).to(kind), torch.randn(width, inner).to(kind)
    shapes = []
    for batch in batches:
        lengths = lists.texts.lengths(np.union1d(batch.queries, batch.items))
        order, slices = chunks_of_like_length(lengths)
        shapes += [(len(order[part]), int(lengths[order[part]].max())) for part in slices]
    start = time.perf_counter()
    for count, length in shapes:
        x, y = (
            torch.empty(count * length, width, dtype=kind),
            torch.empty(count * length, inner, dtype=kind),
        )
        heads_of = torch.empty(count * heads, length, width // heads, dtype=kind)
        attention = torch.empty(count * heads, length, length, dtype=kind)
        for _ in range(layers):
            for _ in range(4):  # query, key, value, output
                x @ square, x @ square.T, x.T @ x
            x @ wide, y @ wide.T, x.T @ y
            y @ wide.T, x @ wide, y.T @ x
            for _ in range(3):
                heads_of @ heads_of.mT, attention @ heads_of
    seconds = time.perf_counter() - start
    return sum(int((batch.relevance > 0).sum()) for batch in batches) / seconds


# -- time to quality ----------------------------------------------------------------------------


def compare_quality(clicks: Clicks, seconds: float, seed: int, console: Console) -> dict[str, Any]:
    """Let the trainer learn for `seconds` at several rates, and see when ours is as good."""
    before = clicks.arena.start
    console.print(f"held-out nDCG@10 before: {before:.4f}")
    target = 0.0
    for rate, sampler in itertools.product(TRAINER_RATES, TRAINER_SAMPLERS):
        quality = trainer_quality(clicks, seconds, rate, sampler, seed)
        target = max(target, quality)
        console.print(f"trainer, rate {rate:g}, {sampler}, {seconds:.0f} s: {quality:.4f}")
    curve = list(our_quality(clicks, seed))
    for at, quality in curve:
        console.print(f"ours after {at:.1f} s: {quality:.4f}")
    reached = next((at for at, quality in curve if quality >= target), None)
    return {
        "ndcg10_before": round(before, 4),
        "ndcg10_trainer": round(target, 4),
        "ndcg10_ours": round(curve[-1][1], 4),
        "seconds_trainer": seconds,
        "seconds_ours": round(curve[-1][0], 1),
        "seconds_to_quality": None if reached is None else round(reached, 1),
        "time_to_quality_ratio": None if reached is None else round(reached / seconds, 3),
    }


def our_quality(
    clicks: Clicks, seed: int, probe_seconds: float = 3.0
) -> Iterator[tuple[float, float]]:
    """Train by our plan and yield the seconds it took so far and the quality at that time."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    lists = clicks.data.train
    clock = Clock()
    encoder = encoder_for(lists, OUR_FROZEN_LAYERS, OUR_RATE)
    optimizer = optimizer_of(encoder, OURS)
    batches = OURS.batches(lists)
    schedule = linear_schedule(optimizer, OURS.epochs * len(batches))
    probed = 0.0
    for _ in range(OURS.epochs):
        encoder.train()
        for batch in batches.shuffled(random):
            learn_from(batch, encoder, OURS, optimizer)
            schedule.step()
            if clock.seconds() - probed > probe_seconds:
                probed = clock.seconds()
                with clock.stopped():
                    yield probed, clicks.arena.quality(encoder.queries.model)
                    encoder.train()
    yield clock.seconds(), clicks.arena.quality(encoder.queries.model)


def trainer_quality(clicks: Clicks, seconds: float, rate: float, sampler: str, seed: int) -> float:
    """Return the quality after a schedule that fills `seconds`, in the faster arithmetic."""
    queries, items = clicks.pairs()
    trial = Steps()
    few = 20 * TRAINER_BATCH
    trainer_of(load_encoder(MODEL), queries[:few], items[:few], bf16=True, callback=trial).train()
    per_step = (trial.times[-1] - trial.times[0]) / (len(trial.times) - 1)
    model = load_encoder(MODEL)
    trainer_of(
        model, queries, items, bf16=True, rate=rate, sampler=sampler, seed=seed,
        max_steps=int(seconds / per_step),
    ).train()  # fmt: skip
    return clicks.arena.quality(model)


def encoder_for(lists: QueryLists, frozen_layers: int, rate: float) -> BiEncoder:
    tower = Tower(load_encoder(MODEL), lists.texts, frozen_layers, rate)
    return BiEncoder(tower, tower)


def trainer_of(
    model: SentenceTransformer,
    queries: list[str],
    items: list[str],
    bf16: bool,
    rate: float = 1e-4,
    sampler: str = "batch_sampler",
    seed: int = 0,
    max_steps: int = -1,
    callback: TrainerCallback | None = None,
) -> SentenceTransformerTrainer:
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=tempfile.gettempdir(), num_train_epochs=1, max_steps=max_steps, bf16=bf16,
            per_device_train_batch_size=TRAINER_BATCH, learning_rate=rate, warmup_steps=0.1,
            batch_sampler=sampler, seed=seed, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_dict({"anchor": queries, "positive": items}),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[callback] if callback else None,
    )  # fmt: skip


class Clock:
    """Seconds since it was made, but for those while it was stopped."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @contextmanager
    def stopped(self) -> Iterator[None]:
        at = self.seconds()
        yield
        self._start = time.perf_counter() - at


class Steps(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


if __name__ == "__main__":
    main()
