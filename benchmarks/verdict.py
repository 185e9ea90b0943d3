"""Is a verdict from clicks right? `python -m benchmarks.verdict`: pool first, estimators then.

The estimator is the product's (`training.judge`). Searchers who click in several ways see what the
initial model shows. The recommended set is trained
on their sessions once per fold of the queries, and each query's shown items are scored by the model
that did not learn from it. What a verdict needs of this, and the truth, is kept in a file per
corpus, way of clicking, number of sessions and seed, so that an estimator is compared in seconds.
With --fresh the models are also judged by new clicks, of the same and of other searchers.
"""

import argparse
import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from benchmarks.clicking import WAYS
from benchmarks.clicks import METRIC, MODEL, PLAN, Arena, Silent, learner
from embedding_studio.clickstream import SearchResult, Session, SessionEvent, Splits
from embedding_studio.errors import NotEnoughData
from embedding_studio.training.browsing import choose, clicks_like_a_person
from embedding_studio.training.clicks import Showings
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks, text_of
from embedding_studio.training.encoder import embed_frozen, load_encoder
from embedding_studio.training.evaluation import note_start
from embedding_studio.training.judge import (
    Start,
    discounts,
    ideal_of_those_with_any,
    starting_features,
)
from embedding_studio.training.loop import train
from embedding_studio.training.metrics import ranking_metrics
from embedding_studio.training.texts import tokenize

FOLDS = 3
SHOWN = 20
DISTRACTORS = 100
VALIDATION_SHARE = 0.1
POOL = Path("mlruns", "verdict")
SECOND = timedelta(seconds=1)
console = Console(width=150)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Shown:
    """What the initial model shows for each posted query. items, relevant: (n_posted, SHOWN)."""

    items: Ints
    relevant: Flags


class Place(Arena):
    """A corpus with what is shown for each query of it."""

    def __init__(self, name: str, model: SentenceTransformer) -> None:
        super().__init__(name, model)
        corpus = self.corpus
        self.tokens = tokenize(model, [*corpus.queries, *(item.label for item in corpus.items)])
        n_queries = len(corpus.queries)
        scores = self.queries[corpus.posted] @ self.items.T
        items = np.argsort(-scores, axis=1, kind="stable")[:, :SHOWN]
        relevant = np.take_along_axis(corpus.relevance[corpus.posted], items, axis=1)
        self.shown = Shown(items, relevant)
        self.fold = np.array([_place(corpus.queries[q]) * FOLDS for q in corpus.posted]).astype(int)
        self.distractors = np.random.default_rng(0).choice(
            len(corpus.items), DISTRACTORS, replace=False
        )
        self.item_rows = np.arange(len(corpus.items)) + n_queries

    def vectors(self, model: SentenceTransformer) -> tuple[NDArray[np.float32], ...]:
        both = embed_frozen(model, self.tokens, np.arange(self.item_rows[-1] + 1))
        return both[: self.item_rows[0]], both[self.item_rows]

    def scored(self, model: SentenceTransformer) -> dict[str, NDArray[np.float32]]:
        """Return what is kept of a model: scores of the shown and the distractors by posted query,
        and the true nDCG@10 of held-out and of posted queries."""
        queries, items = self.vectors(model)
        scores = queries @ items.T
        truth = ranking_metrics(scores, self.corpus.relevance.astype(float))[METRIC]
        posted = scores[self.corpus.posted]
        return {
            "shown": np.take_along_axis(posted, self.shown.items, axis=1).astype(np.float32),
            "others": posted[:, self.distractors].astype(np.float32),
            "truth": truth[self.corpus.held_out].astype(np.float32),
            "posted_truth": truth[self.corpus.posted].astype(np.float32),
        }

    def searches(self, count: int, seed: int) -> Ints:
        """Return (count,) places in `posted`: Zipf's law in a random order of popularity."""
        random = np.random.default_rng(seed)
        popularity = 1 / random.permutation(np.arange(1, len(self.corpus.posted) + 1))
        return random.choice(len(popularity), size=count, p=popularity / popularity.sum())

    def as_sessions(self, rows: Ints, clicked: Flags) -> list[Session]:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        items = self.corpus.items
        results = [
            tuple(SearchResult(items[i].object_id, meta={"text": items[i].label}) for i in of_query)
            for of_query in self.shown.items
        ]
        return [
            Session(
                session_id=f"s-{number}",
                search_query=self.corpus.queries[self.corpus.posted[row]],
                search_results=results[row],
                created_at=now,
                events=tuple(
                    SessionEvent(f"s-{number}-{k}", results[row][k].object_id, now + SECOND)
                    for k in np.flatnonzero(clicked[number])
                ),
            )
            for number, row in enumerate(rows)
        ]


def _place(query: str, salt: str = "") -> float:
    digest = hashlib.sha256((salt + query).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def learnt(place: Place, sessions: Sequence[Session], fold: int, seed: int) -> SentenceTransformer:
    """Train the recommended set without a fold of the queries; -1: on all of them."""
    folds = {
        place.corpus.queries[q]: f for q, f in zip(place.corpus.posted, place.fold, strict=True)
    }
    parts: Splits[list[Session]] = Splits([], [], [])
    for session in sessions:
        if folds[session.search_query] == fold:
            parts.test.append(session)
        elif _place(session.search_query, "validation") < VALIDATION_SHARE:
            parts.validation.append(session)
        else:
            parts.train.append(session)
    if fold < 0:
        parts = Splits(parts.train, parts.validation, parts.validation)
    with tempfile.TemporaryDirectory() as work:
        prepare_clicks(parts, text_of, partial(tokenize, place.model), Path(work))
        note_start(place.model, Path(work), open_clicks(Path(work)).validation)
        data: Splits[QueryLists] = open_clicks(Path(work))
        encoder = learner(place.model, data)
        train(encoder, PLAN, data, METRIC, Silent(seed))
    return encoder.queries.model


def with_noise(start: SentenceTransformer, share: float, seed: int) -> SentenceTransformer:
    """Return the model with noise on all weights, by a share of each tensor's own spread."""
    model = copy.deepcopy(start)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * share)
    return model


@dataclass(frozen=True)
class Cell:
    corpus: str
    way: str
    sessions: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.corpus}-{self.way}-{self.sessions}-{self.seed}"


def simulate(place: Place, cell: Cell) -> tuple[Ints, Flags]:
    rows = place.searches(cell.sessions, cell.seed)
    random = np.random.default_rng([cell.seed, 1])
    relevant = place.shown.relevant
    if cell.way == "random":  # as many relevant ones, anywhere and anew by query
        relevant = random.random(relevant.shape) < relevant.mean()
    return rows, WAYS[cell.way](relevant[rows], random)


def fill(place: Place, cell: Cell, folder: Path, refit: bool = False) -> None:
    """Write the file of a cell, unless it is there."""
    file = folder / f"{cell.name}.npz"
    if file.exists():
        return
    began = time.perf_counter()
    rows, clicked = simulate(place, cell)
    sessions = place.as_sessions(rows, clicked)
    kept: dict[str, NDArray[Any]] = {}
    try:
        models = [place.scored(learnt(place, sessions, f, cell.seed)) for f in range(FOLDS)]
    except NotEnoughData:
        save(file, is_refused=np.array(True))
        say(f"{cell.name}: refused, too little to learn from")
        return
    for name in ("shown", "others"):
        by_model = np.stack([model[name] for model in models])
        kept[name] = by_model[place.fold, np.arange(len(place.fold))]
        if name == "shown":
            kept["shown_by_fold"] = by_model
    kept["truth"] = np.stack([model["truth"] for model in models])
    kept["posted_truth"] = np.stack([model["posted_truth"] for model in models])
    if refit:
        kept["refit_truth"] = place.scored(learnt(place, sessions, -1, cell.seed))["truth"]
    save(file, rows=rows, clicked=np.packbits(clicked, axis=1), **kept)
    gain = kept["truth"].mean() - place.start
    say(f"{cell.name}: true {gain:+.4f}, {time.perf_counter() - began:.0f} s")


def fill_start(place: Place, folder: Path, noise: Sequence[tuple[float, int]]) -> None:
    """Write the files of the initial model, and of it with noise on its weights."""
    file = folder / f"{place.name}-start.npz"
    if not file.exists():
        save(
            file,
            **place.scored(place.model),
            relevant=place.shown.relevant,
            items=place.shown.items,
            distractors=place.distractors,
            fold=place.fold,
            n_relevant=place.corpus.relevance[place.corpus.posted].sum(axis=1),
        )
    for share, seed in noise:
        file = folder / f"{place.name}-noise-{share:g}-{seed}.npz"
        if not file.exists():
            scored = place.scored(with_noise(place.model, share, seed))
            save(file, **scored)
            say(f"{file.stem}: true {scored['truth'].mean() - place.start:+.4f}")


def save(file: Path, **arrays: NDArray[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, allow_pickle=False, **arrays)
    part.rename(file)


@dataclass(frozen=True)
class Candidate:
    """A model to judge: its scores by posted query, and its mean true gain over held-out queries.

    is_null: it learnt nothing true; where its gain is above zero all the same, it is left out."""

    name: str
    corpus: str
    shown: Floats
    others: Floats
    gain: float
    is_null: bool


@dataclass(frozen=True)
class Verdict:
    way: str
    sessions: int
    candidate: Candidate
    said: float
    error: float

    @property
    def promoted(self) -> bool:
        return self.said > 1.96 * self.error


def candidates(folder: Path, corpus: str) -> list[Candidate]:
    start = read(folder / f"{corpus}-start.npz")
    found = []
    for file in sorted(folder.glob(f"{corpus}-*.npz")):
        if file.stem.endswith("-start") or file.name.endswith(".part.npz"):
            continue
        kept = read(file)
        if "is_refused" in kept:
            continue
        gain = float(kept["truth"].mean() - start["truth"].mean())
        is_null = file.stem.split("-")[1] in ("noise", "random", "shuffled")
        shown, others = kept["shown"].astype(float), kept["others"].astype(float)
        found.append(Candidate(file.stem, corpus, shown, others, gain, is_null))
    return found


def count_refused(folder: Path, corpora: Sequence[str]) -> int:
    """Return how many batches were refused before anything learnt from them."""
    files = [file for corpus in corpora for file in folder.glob(f"{corpus}-*.npz")]
    return sum("is_refused" in read(file) for file in files)


def verdicts(
    folder: Path, corpus: str, ways: Sequence[str], counts: Sequence[int], seeds: Sequence[int]
) -> Iterator[Verdict]:
    """Judge every model of a corpus by every draw of clicks."""
    start = read(folder / f"{corpus}-start.npz")
    models = candidates(folder, corpus)
    for way in ways:
        for count in counts:
            for seed in seeds:
                folds = judges(start, *fresh_clicks(start["relevant"], way, count, seed))
                for model in models:
                    values = np.concatenate(
                        [fold.difference(model.shown, model.others) for fold in folds]
                    )
                    error = float(values.std(ddof=1) / np.sqrt(len(values)))
                    yield Verdict(way, count, model, float(values.mean()), error)


@dataclass(frozen=True)
class Fold:
    """One part of the queries, and what judges models on it. queries: places in `posted`."""

    queries: Ints
    is_other: Flags
    start: Start
    level: Floats

    def difference(self, shown: Floats, others: Floats) -> Floats:
        """Return (n_queries,) values. shown, others: of a candidate, by posted query."""
        return self._judged(shown, others) - self.level

    def _judged(self, shown: Floats, others: Floats) -> Floats:
        own = shown[self.queries].ravel()
        discount = discounts(own, others[self.queries], self.is_other, self.start.offsets)
        return self.start.judged(own, discount)


def judges(start: dict[str, NDArray[Any]], rows: Ints, clicked: Flags) -> list[Fold]:
    """Return what judges each fold by sessions: the product's way from clicks to `Start`, with
    a model of clicking that was fitted to the other folds' sessions."""
    width = clicked.shape[1]
    sessions, places = np.indices(clicked.shape)
    showings = Showings(
        session=sessions.ravel(),
        pair=(rows[:, None] * width + places).ravel(),
        position=places.ravel(),
        weight=clicked.ravel().astype(float),
        n_pairs=start["shown"].size,
        n_sessions=len(rows),
    )
    showings = showings.of_sessions(clicks_like_a_person(showings))
    asked, query = np.unique(showings.pair // width, return_inverse=True)
    pair, n_pairs = query * width + showings.position, len(asked) * width
    showings = replace(showings, pair=pair, n_pairs=n_pairs)
    scores, others = start["shown"][asked].astype(float).ravel(), start["others"][asked]
    is_other = np.stack(
        [~(start["items"][asked] == item).any(axis=1) for item in start["distractors"]], axis=1
    )
    offsets, row = np.arange(len(asked) + 1) * width, np.repeat(np.arange(len(asked)), width)
    features = starting_features(scores, np.tile(np.arange(width), len(asked)), offsets)
    discount = discounts(scores, others, is_other, offsets)
    folds = []
    for number in range(FOLDS):
        here = start["fold"][asked] == number
        pairs = here[row]
        choice = choose(showings, features, row, ~pairs)
        own = Start(
            offsets=offsets[: here.sum() + 1],
            evidence=choice.evidence[pairs],
            relevance=choice.relevance[pairs],
            scores=scores[pairs],
            discount=discount[pairs],
            features=features[pairs],
            is_asked=np.ones(here.sum(), np.bool_),
            scale=np.array(
                ideal_of_those_with_any(choice.relevance[pairs].reshape(here.sum(), width))
            ),
            unit=np.array(1.0),
        )
        level = own.judged(own.scores, own.discount)
        folds.append(Fold(asked[here], is_other[here], own, level))
    return folds


def fresh_clicks(relevant: Flags, way: str, count: int, seed: int) -> tuple[Ints, Flags]:
    """Draw searches and clicks that no model learnt from."""
    random = np.random.default_rng([seed, 2])
    popularity = 1 / random.permutation(np.arange(1, len(relevant) + 1))
    rows = random.choice(len(relevant), size=count, p=popularity / popularity.sum())
    return rows, WAYS[way](relevant[rows], random)


def report(found: Sequence[Verdict], least_gain: float = 0.02) -> dict[str, float]:
    """Print a table and return the figures."""
    table = Table("corpus", "clicks", "sessions", "power", "said / true", "off by", "z", "null z")
    groups = {(v.candidate.corpus, v.way, v.sessions) for v in found}
    for corpus, way, count in sorted(groups):
        here = [v for v in found if (v.candidate.corpus, v.way, v.sessions) == (corpus, way, count)]
        better, null = truly_better(here, least_gain), no_better(here)
        ratio = [v.said / v.candidate.gain for v in better]
        z, null_z = ([v.said / v.error for v in part] for part in (better, null))
        table.add_row(
            corpus,
            way,
            str(count),
            f"{share_promoted(better):.2f} of {len(better)}",
            f"{np.mean(ratio):.2f}",
            f"{np.median(np.abs(np.array(ratio) - 1)):.2f}",
            f"{np.mean(z):.1f}",
            f"{np.mean(null_z):+.2f} +- {np.std(null_z):.2f}, {share_promoted(null):.3f} of "
            f"{len(null)} promoted",
        )
    console.print(table)
    better = truly_better(found, least_gain)
    figures = {
        f"power_{count}": share_promoted([v for v in better if v.sessions == count])
        for count in sorted({v.sessions for v in found})
    }
    off = [abs(v.said - v.candidate.gain) / v.candidate.gain for v in better]
    return figures | {
        "false_promotions": share_promoted(no_better(found)),
        "size_error": float(np.median(off)),
        "judged_better": len(better),
        "judged_no_better": len(no_better(found)),
    }


def truly_better(found: Sequence[Verdict], least_gain: float) -> list[Verdict]:
    return [v for v in found if not v.candidate.is_null and v.candidate.gain >= least_gain]


def no_better(found: Sequence[Verdict]) -> list[Verdict]:
    return [v for v in found if v.candidate.gain <= 0]


def share_promoted(found: Sequence[Verdict]) -> float:
    return float(np.mean([v.promoted for v in found])) if found else float("nan")


def read(file: Path) -> dict[str, NDArray[Any]]:
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--pool", type=Path, default=POOL)
    options.add_argument("--corpora", default="icons,catalogue")
    options.add_argument("--ways", default="position,cascade,half,trust,bots")
    options.add_argument("--sessions", default="5000")
    options.add_argument("--seeds", default="0,1")
    options.add_argument("--noise", type=int, default=3, help="models per strength")
    options.add_argument("--refit", action="store_true")
    options.add_argument("--fresh", type=int, default=3, help="draws of clicks to judge by")
    options.add_argument("--report", action="store_true", help="judge what is in the pool already")
    args = options.parse_args()
    corpora, ways = args.corpora.split(","), args.ways.split(",")
    counts = [int(count) for count in args.sessions.split(",")]
    if not args.report:
        fill_pool(args, corpora, ways, counts)
    found = [
        verdict
        for corpus in corpora
        for verdict in verdicts(args.pool, corpus, ways, counts, range(args.fresh))
    ]
    figures = {key: round(value, 4) for key, value in report(found).items()}
    figures["refused"] = count_refused(args.pool, corpora)
    print(json.dumps(figures))  # noqa: T201 - the line that machines read


def say(line: str) -> None:
    console.print(line, highlight=False)


def fill_pool(
    args: argparse.Namespace, corpora: Sequence[str], ways: Sequence[str], counts: Sequence[int]
) -> None:
    model = load_encoder(MODEL)
    places = {name: Place(name, model) for name in corpora}
    noise = [(share, seed) for seed in range(args.noise) for share in (0.005, 0.01, 0.02)]
    for place in places.values():
        fill_start(place, args.pool, noise)
    for seed in map(int, filter(None, args.seeds.split(","))):
        for count in counts:
            for way in ways:
                for name, place in places.items():
                    fill(place, Cell(name, way, count, seed), args.pool, args.refit)


if __name__ == "__main__":
    main()
