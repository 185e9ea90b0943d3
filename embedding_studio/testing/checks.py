"""What a method must hold, each a check that says in words what is wrong.

A check raises an error of ours for what the method does wrong, and lets what the method itself
raises pass. It returns why there was nothing to check, or None."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import SearchResult, Session
from embedding_studio.engine.scores import SCORE_TOLERANCE, read_scores, say_score, suspicions
from embedding_studio.errors import MethodError, TrialCanceled, TrialPruned
from embedding_studio.executors.base import Verdict
from embedding_studio.search import Search, draw_sets
from embedding_studio.search.space import label_of
from embedding_studio.testing.bench import PROMPTS, Bench
from embedding_studio.tracking.files import describe_files, refuse_unknown_kinds, require_plain
from embedding_studio.training.encoder import without_progress_bars
from embedding_studio.training.serving import SAME

Check: TypeAlias = Callable[[Bench], str | None]
Vectors = NDArray[np.float32]

_DRAWS = 5
_TEXTS = 20


def check_suggest(bench: Bench) -> str | None:
    """`suggest` draws the same sets for the same seed, and can draw the one that is recommended."""
    method = bench.method
    first, again = (
        [{name: label_of(value) for name, value in drawn.items()} for drawn in sets]
        for sets in (draw_sets(method.suggest, _DRAWS, seed=0) for _ in range(2))
    )
    for one, other in zip(first, again, strict=True):
        if repr(one) != repr(other):
            raise MethodError(
                f"`suggest` is not deterministic: of one seed it drew {one} and then {other}. Draw "
                "with trial.suggest_float(...) and its siblings alone"
            )
    if method.recommended is not None:
        for told in Search(method.direction, 0).recommend(method.suggest, method.recommended):
            raise MethodError(told)
    return None


def check_save_and_load(bench: Bench) -> str | None:
    """A model that was saved and loaded gives the scores, and the vectors, that it gave before;
    its files run no code when they are read."""
    method, metric = bench.method, bench.method.main_metric
    start = method.load_initial_model()
    for what, model in (("initial", start), ("trained", bench.trained.model)):
        folder = bench.save(model)
        require_plain(folder)
        names = [file.path for file in describe_files(folder)]
        if not names:
            raise MethodError("`save` writes no file into the folder that it is given")
        refuse_unknown_kinds(names)
        loaded = method.load(folder)
        before, after = bench.scores(model), bench.scores(loaded)
        if not _agree(before[metric], after[metric]):
            raise MethodError(
                f"`save` and `load` lose something: the {what} model's {metric} was "
                f"{say_score(before, metric)} before it was saved, and {say_score(after, metric)} "
                f"after it was loaded again, {_say_difference(before[metric], after[metric])}"
            )
        for side in _encodes(model) & _encodes(loaded):
            given, found = (getattr(one, side)(_texts(bench, side)) for one in (model, loaded))
            if not _same_vectors(given, found):
                raise MethodError(
                    f"`save` and `load` lose something: `{side}` of the {what} model gives other "
                    "vectors after it was saved and loaded again"
                )
    return None


def check_evaluate(bench: Bench) -> str | None:
    """`evaluate` gives finite scores, the main metric with a value per query, the same each time.

    Where a value per query makes no sense, leave this check out."""
    metric = bench.method.main_metric
    start = bench.method.load(bench.start)
    found = {split: bench.scores(start, split) for split in ("validation", "test")}
    found["trained"] = bench.scores(bench.trained.model)
    for scores in found.values():
        for name, values in scores.items():
            if not np.isfinite(values).all():
                wrong = np.count_nonzero(~np.isfinite(values))
                raise MethodError(f"{name} is not finite for {wrong} of {np.size(values)} values")
    again = bench.scores(start)
    if not _agree(found["validation"][metric], again[metric]):
        raise MethodError(
            f"`evaluate` is not deterministic: one model's {metric} was "
            f"{say_score(found['validation'], metric)} and then {say_score(again, metric)} on the "
            "same split. Seed what is drawn at random, and turn dropout off"
        )
    if np.ndim(found["test"][metric]) == 0:
        raise MethodError(
            f"{metric} is one number for all queries: give an array with a value per query, so "
            "that the gate can tell a gain from chance"
        )
    if np.shape(found["trained"][metric]) != np.shape(found["validation"][metric]):
        raise MethodError(
            f"{metric} has {np.size(found['validation'][metric])} values for the initial model and "
            f"{np.size(found['trained'][metric])} for a trained one on the same split: which "
            "queries are scored must not depend on the model"
        )
    for told in suspicions(found["validation"], found["test"], metric):
        raise MethodError(told)
    for model in (start, bench.trained.model):
        split = bench.load_data().test
        explained = read_scores(bench.method.explain(model, split), "explain")
        if unknown := bench.method.rank(model, split).keys() - explained.keys():
            raise MethodError(
                f"`rank` tells of {min(unknown)!r} and `explain` does not: they name queries alike"
            )
    return None


def check_train(bench: Bench) -> str | None:
    """`train` reports validation scores by steps that ascend, and returns a model that learnt."""
    trained = bench.trained
    steps = [report.step for report in trained.reports]
    if not steps:
        raise MethodError(
            "`train` never calls run.report: such a trial can neither be pruned nor stopped"
        )
    if any(after <= before for before, after in pairwise(steps)):
        raise MethodError(f"`train` reports the steps {steps}: each must be greater than the last")
    if trained.model is None:
        raise MethodError("`train` returns None: return the model")
    bench.scores(trained.model)
    if _weights(trained.folder) == _weights(bench.start):
        raise MethodError(
            f"`train` returns the model that it was given, unchanged, with {bench.drawn}: nothing "
            "is learnt"
        )
    untested = replace(bench.load_data(), test=None)
    foretold = bench.method.estimate_trained_tokens(bench.drawn, untested)
    if foretold and not trained.run.trained_tokens:
        raise MethodError(
            f"`estimate_trained_tokens` foretells {foretold} tokens and `train` counts none: add "
            "what it sees to run.trained_tokens"
        )
    return None


def check_stop(bench: Bench) -> str | None:
    """Asked to stop, `train` returns its model as it stands; a pruned trial ends at once."""
    try:
        pruned = bench.train(Verdict.PRUNE)
    except TrialPruned:
        pass
    else:
        if pruned.reports:
            raise MethodError(
                "`train` went on after its trial was pruned: let the error that run.report raises "
                "pass, and catch no `Exception` around it"
            )
    if len(bench.trained.reports) < 2:
        return "it reports no more than once, so that there is nothing to stop"
    try:
        stopped = bench.train(Verdict.STOP)
    except TrialCanceled:
        raise MethodError(
            "asked to stop at its first report, `train` reported again: look at run.should_stop "
            "after each report, and return the model as it stands"
        ) from None
    bench.scores(stopped.model)
    return None


def check_seeds(bench: Bench) -> str | None:
    """One seed gives one model, whatever else in the process draws at random."""
    once = bench.trained
    again = bench.train(others_seed=1)
    if _content(once.folder) == _content(again.folder):
        return None
    metric = bench.method.main_metric
    scores = [bench.scores(one.model) for one in (once, again)]
    # additions on a GPU come in any order
    if torch.cuda.is_available() and _agree(*(one[metric] for one in scores)):
        return None
    raise MethodError(
        "two trainings with one seed gave different models, of "
        f"{metric} {' and '.join(say_score(one, metric) for one in scores)}: seed all that is "
        "drawn at random by run.seed (torch.manual_seed(run.seed), "
        "np.random.default_rng(run.seed))"
    )


def check_frozen(bench: Bench) -> str | None:
    """Training and scoring leave alone what they are given: the data, the saved start, the
    hyperparameters, the model that is scored, and what the model has frozen."""
    method = bench.method
    given = {"data": bench.data_folder, "the saved start": bench.start}
    files = {what: _digests(folder) for what, folder in given.items()}
    params = copy.deepcopy(bench.drawn)
    trained = bench.train()
    for what, folder in given.items():
        now = _digests(folder)
        for name, digest in files[what].items():
            if now.get(name) != digest:
                raise MethodError(
                    f"training changed {name} in the folder of {what}, which all trials share"
                )
    if repr(params) != repr(bench.drawn):
        raise MethodError(f"`train` changed its hyperparameters from {params} to {bench.drawn}")
    _check_evaluate_changes_nothing(bench, trained.model)
    start = method.load(bench.start)
    for name, before, after in _fixed_parameters(start, trained.model):
        if not torch.equal(before, after):
            raise MethodError(
                f"`load` gives {name} with requires_grad = False, and training changed it"
            )
    _check_patterns(bench, trained.folder)
    if bench.keeps_items:
        texts = _texts(bench, "encode_document")
        before, after = (
            _served(folder).encode_document(texts) for folder in (bench.start, trained.folder)
        )
        if not _same_vectors(before, after):
            raise MethodError("items are to keep their vectors, and training changed them")
    return None


def _check_evaluate_changes_nothing(bench: Bench, model: Any) -> None:
    before = _content(bench.save(model))
    bench.scores(model)
    if _content(bench.save(model)) != before:
        raise MethodError("`evaluate` changes the model that it scores")


def _check_patterns(bench: Bench, folder: Path) -> None:
    start, now = _tensors(bench.start), _tensors(folder)
    for pattern in bench.frozen:
        names = [name for name in start if fnmatchcase(name, pattern)]
        if not names:
            there = ", ".join(sorted(start)) or "none"
            raise MethodError(f"no tensor that `save` wrote is named {pattern!r}; there is {there}")
        for name in names:
            if name not in now or not np.array_equal(start[name], now[name]):
                raise MethodError(f"{name}, which is to stay frozen, was changed by training")


def check_served(bench: Bench) -> str | None:
    """What `evaluate` scores is what `encode_query` and `encode_document` of the saved model give.

    Where the method starts from ES_INITIAL_MODEL: a model that puts prompts before its texts scores
    as one without does on texts that begin with them."""
    if not (bench.start / "modules.json").exists():
        return "what it saves is no sentence-transformers model"
    folder = bench.trained.folder
    served, model = _served(folder), bench.method.load(folder)
    for side in ("encode_query", "encode_document"):
        texts = _texts(bench, side)
        vectors = getattr(served, side)(texts)
        if not np.isfinite(vectors).all():
            raise MethodError(f"`{side}` of the saved model gives what is not finite")
        if side in _encodes(model) and not _same_vectors(vectors, getattr(model, side)(texts)):
            raise MethodError(
                f"`{side}` of the saved model, loaded by sentence-transformers alone, gives other "
                "vectors than the model that `load` returns"
            )
    return _check_prompts(bench)


def _check_prompts(bench: Bench) -> str | None:
    method, found = bench.method, []
    prefixed = bench.sessions.map(lambda part: [_prefixed(session) for session in part])
    sides = ("encode_query", "encode_document")
    for prompts, sessions in ((PROMPTS, bench.sessions), ({}, prefixed)):
        with bench.standing_in(prompts=prompts):
            start = bench.save(method.load_initial_model())
            split = method.load_data(bench.prepare(sessions, start)).validation
            scores = read_scores(method.evaluate(method.load(start), split))
            texts = {side: _texts(bench, side) for side in sides}
            if not prompts:
                texts = {
                    side: [PROMPTS[side.removeprefix("encode_")] + text for text in some]
                    for side, some in texts.items()
                }
            served = _served(start)
            found.append((scores, [getattr(served, side)(texts[side]) for side in sides]))
    (by_prompt, vectors), (by_text, same) = found
    if not all(map(_same_vectors, vectors, same)):
        return "the prompts that its model has are its own"
    metric = method.main_metric
    if not _agree(by_prompt[metric], by_text[metric]):
        raise MethodError(
            f"`evaluate` does not score what is served: with the prompts {PROMPTS} in the model "
            f"its {metric} is {say_score(by_prompt, metric)}, and with the same before the texts "
            f"{say_score(by_text, metric)}. Encode queries as `encode_query` does, and items as "
            "`encode_document` does"
        )
    return None


def _prefixed(session: Session) -> Session:
    return replace(
        session,
        search_query=PROMPTS["query"] + session.search_query,
        search_results=tuple(map(_prefixed_result, session.search_results)),
    )


def _prefixed_result(result: SearchResult) -> SearchResult:
    text = result.meta.get("text")
    if not isinstance(text, str):
        return result
    return replace(result, meta={**result.meta, "text": PROMPTS["document"] + text})


CHECKS: Mapping[str, Check] = {
    "suggest": check_suggest,
    "train": check_train,
    "evaluate": check_evaluate,
    "save_and_load": check_save_and_load,
    "stop": check_stop,
    "seeds": check_seeds,
    "frozen": check_frozen,
    "served": check_served,
}
"""By their names, in the order in which a mistake is told best."""


# -- how two are compared -------------------------------------------------------------------------


def _agree(one: Any, other: Any) -> bool:
    """Return whether two scores, each one number or one per query, are the same but for rounding:
    on average over the queries, for two ranks may swap by it."""
    if np.shape(one) != np.shape(other):
        return False
    apart = np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()
    return bool(apart <= SCORE_TOLERANCE * max(1.0, float(np.abs(np.mean(other)))))


def _say_difference(one: Any, other: Any) -> str:
    if np.shape(one) != np.shape(other) or not np.ndim(one):
        return "another number"
    return f"another value for {np.count_nonzero(one != other)} of {np.size(one)} queries"


def _same_vectors(one: Vectors, other: Vectors) -> bool:
    if np.shape(one) != np.shape(other):
        return False
    lengths = np.linalg.norm(np.asarray(one, float), axis=1)
    return bool((np.linalg.norm(one - other, axis=1) <= SAME * lengths).all())


def _encodes(model: Any) -> set[str]:
    return {name for name in ("encode_query", "encode_document") if hasattr(model, name)}


def _texts(bench: Bench, side: str) -> list[str]:
    """Return some queries, or texts of items, of the batch."""
    texts: dict[str, None] = {}
    for session in bench.sessions.validation:
        if side == "encode_query":
            texts[session.search_query] = None
        else:
            metas = (result.meta for result in session.search_results)
            texts |= {meta["text"]: None for meta in metas if isinstance(meta.get("text"), str)}
        if len(texts) >= _TEXTS:
            break
    return [*texts][:_TEXTS]


def _served(folder: Path) -> SentenceTransformer:
    with without_progress_bars():
        return SentenceTransformer(str(folder))


def _digests(folder: Path) -> dict[str, str]:
    return {file.path: file.sha256 for file in describe_files(folder)}


def _content(folder: Path) -> dict[str, str]:
    """Return hashes of what a model consists of; what is written for people, with dates, apart."""
    return {name: digest for name, digest in _digests(folder).items() if not name.endswith(".md")}


def _weights(folder: Path) -> dict[str, str]:
    """Return hashes of the files that hold numbers; of all, where none is known to."""
    content = _content(folder)
    return {
        name: digest for name, digest in content.items() if name.endswith((".safetensors", ".npy"))
    } or content


def _tensors(folder: Path) -> dict[str, NDArray[Any]]:
    return {
        name: tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def _fixed_parameters(start: Any, trained: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the parameters that a torch model has as ones that do not learn, beside others that
    do, before and after training."""
    if not (isinstance(start, torch.nn.Module) and isinstance(trained, torch.nn.Module)):
        return
    before, after = dict(start.named_parameters()), dict(trained.named_parameters())
    fixed = [name for name, parameter in before.items() if not parameter.requires_grad]
    if len(fixed) < len(before):
        for name in fixed:
            if name in after:
                yield name, before[name].cpu(), after[name].cpu()
