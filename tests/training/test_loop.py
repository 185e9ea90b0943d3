from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import Splits, split_by_query
from embedding_studio.errors import MethodError, TrialCanceled
from embedding_studio.methods import Scores
from embedding_studio.training import loop
from embedding_studio.training.batches import Batches
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks, text_of
from embedding_studio.training.encoder import load_encoder, save_encoder
from embedding_studio.training.evaluation import evaluate
from embedding_studio.training.loop import (
    TrainingPlan,
    batch_loss,
    estimate_trained_tokens,
    linear_schedule,
)
from embedding_studio.training.texts import tokenize
from embedding_studio.training.towers import BiEncoder, Tower
from tests.training.tiny import Reports, searches

PLAN = TrainingPlan(epochs=2, batch_size=32)


def encoder_of(
    model: SentenceTransformer, data: Splits[QueryLists], lora_rank: int = 0
) -> BiEncoder:
    tower = Tower(model, data.train.texts, 1, learning_rate=3e-3, lora_rank=lora_rank)
    return BiEncoder(tower, tower)


def train(
    model: SentenceTransformer,
    plan: TrainingPlan,
    data: Splits[QueryLists],
    run: Reports,
    lora_rank: int = 0,
) -> None:
    loop.train(encoder_of(model, data, lora_rank), plan, without_test(data), "ndcg_at_10", run)


@pytest.fixture(scope="module")
def data(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Splits[QueryLists]:
    folder = tmp_path_factory.mktemp("data")
    model = load_encoder(tiny_model_folder)
    sessions = split_by_query(searches(6000))
    prepare_clicks(sessions, text_of, partial(tokenize, model), folder)
    return open_clicks(folder)


@pytest.fixture
def model(tiny_model_folder: Path) -> SentenceTransformer:
    return load_encoder(tiny_model_folder)


def weights_of(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in model.state_dict().items()}


def mean(scores: Scores, name: str) -> float:
    return float(np.mean(scores[name]))


def without_test(data: Splits[QueryLists]) -> Splits[QueryLists]:
    return replace(data, test=None)  # type: ignore[arg-type]


def test_training_lowers_the_loss_and_reports_each_epoch(
    model: SentenceTransformer, data: Splits[QueryLists]
) -> None:
    """The loss over all training queries falls; every reported metric is one of evaluation's."""
    everything = Batches(data.train, batch_size=10_000, negatives_per_click=8)
    (batch,) = everything.shuffled(np.random.default_rng(0))

    def loss_now() -> float:
        with torch.inference_mode():
            model.eval()
            return batch_loss(encoder_of(model, data), batch, PLAN).item()

    before = loss_now()
    run = Reports()
    train(model, replace(PLAN, epochs=3), data, run)
    assert loss_now() < before - 0.05
    assert set(run.scores[0]) == set(evaluate(model, data.validation))


def test_frozen_layers_do_not_change(model: SentenceTransformer, data: Splits[QueryLists]) -> None:
    """After training, embeddings and frozen layers are bit for bit the same; others are not."""
    before = weights_of(model)
    train(model, PLAN, data, Reports())
    changed = {name for name, now in weights_of(model).items() if not now.equal(before[name])}
    assert changed
    assert all(".layer.1." in name or "pooler" in name for name in changed)


def test_a_seed_fixes_the_outcome(tiny_model_folder: Path, data: Splits[QueryLists]) -> None:
    """Two trainings of one seed give the same weights; another seed gives others."""

    def outcome(seed: int) -> torch.Tensor:
        model = load_encoder(tiny_model_folder)
        plan = replace(PLAN, epochs=1)
        train(model, plan, data, Reports(seed))
        return torch.cat([values.flatten().float() for values in model.state_dict().values()])

    assert outcome(1).equal(outcome(1))
    assert not outcome(1).equal(outcome(2))


def test_the_best_epoch_is_kept_and_training_ends_early(
    model: SentenceTransformer, data: Splits[QueryLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first epoch stays the best, two more are tried and its weights come back."""
    seen: list[dict[str, torch.Tensor]] = []

    def worse_each_time(encoder: BiEncoder, lists: QueryLists) -> Mapping[str, float]:
        seen.append(weights_of(model))
        return {"ndcg_at_10": -float(len(seen)), "similarity_gap": 0.0}

    monkeypatch.setattr(loop, "evaluate", worse_each_time)
    run = Reports()
    train(model, replace(PLAN, epochs=9), data, run)
    assert len(run.scores) == 3
    first_epoch, last_epoch = seen[0], seen[2]
    kept = weights_of(model)
    assert all(kept[name].equal(first_epoch[name]) for name in kept)
    assert not all(kept[name].equal(last_epoch[name]) for name in kept)


def test_of_epochs_that_noise_cannot_tell_apart_the_last_is_kept(
    model: SentenceTransformer, data: Splits[QueryLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean that is lower by less than its error does not bring an earlier epoch back."""
    seen: list[dict[str, torch.Tensor]] = []
    scores = iter([[0.9, 0.2], [0.4, 0.6], [0.1, 1.0], [0.9, 0.3]])  # two epochs, two blends

    def scripted(encoder: BiEncoder, lists: QueryLists) -> Scores:
        seen.append(weights_of(model))
        return {"ndcg_at_10": np.array(next(scores)), "similarity_gap": 0.0}

    monkeypatch.setattr(loop, "evaluate", scripted)
    train(model, PLAN, data, Reports())
    kept = weights_of(model)
    assert all(kept[name].equal(seen[1][name]) for name in kept)


def test_a_better_blend_with_the_start_is_kept(
    model: SentenceTransformer, data: Splits[QueryLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights halfway between start and tuned win when validation likes them best."""
    seen: list[dict[str, torch.Tensor]] = []
    scores = iter([0.5, 0.9, 0.6])  # the epoch, one half, three quarters
    start = weights_of(model)

    def scripted(encoder: BiEncoder, lists: QueryLists) -> Mapping[str, float]:
        seen.append(weights_of(model))
        return {"ndcg_at_10": next(scores), "similarity_gap": 0.0}

    monkeypatch.setattr(loop, "evaluate", scripted)
    train(model, replace(PLAN, epochs=1), data, Reports())
    name = next(name for name, _ in model.named_parameters() if ".layer.1." in name)
    halfway = (start[name] + seen[0][name]) / 2
    torch.testing.assert_close(weights_of(model)[name], halfway)


def test_distance_shift_is_the_gap_gained(
    model: SentenceTransformer, data: Splits[QueryLists]
) -> None:
    """The reported shift is the gap after an epoch minus the baseline's."""
    run = Reports(baseline={"similarity_gap": 0.125})
    train(model, PLAN, data, run)
    for scores in run.scores:
        expected = mean(scores, "similarity_gap") - 0.125
        assert mean(scores, "distance_shift") == pytest.approx(expected)


def test_what_report_raises_ends_the_training(
    model: SentenceTransformer, data: Splits[QueryLists]
) -> None:
    """A canceled trial is not caught."""

    class Canceled(Reports):
        def report(self, scores: Scores, step: int) -> None:
            raise TrialCanceled

    with pytest.raises(TrialCanceled):
        train(model, PLAN, data, Canceled())


def test_low_rank_adapters_become_weights(
    tiny_model_folder: Path, data: Splits[QueryLists], tmp_path: Path
) -> None:
    """With adapters, only linear maps above the frozen layers change, by a matrix of that rank; the
    model has its own modules back and saves as any other."""
    model = load_encoder(tiny_model_folder)
    modules = [type(module) for module in model.modules()]
    before = weights_of(model)
    run = Reports()
    train(model, replace(PLAN, epochs=3), data, run, lora_rank=2)
    changed = {name: now - before[name] for name, now in weights_of(model).items()}
    changed = {name: change for name, change in changed.items() if change.abs().max() > 0}
    assert changed
    for name, change in changed.items():
        assert ".layer.1." in name
        assert name.endswith(".weight")
        assert np.linalg.matrix_rank(change.numpy(), tol=1e-5) <= 2
    assert [type(module) for module in model.modules()] == modules
    save_encoder(model, tmp_path / "saved")
    saved = evaluate(load_encoder(tmp_path / "saved"), data.validation)
    assert mean(saved, "ndcg_at_10") == pytest.approx(
        mean(evaluate(model, data.validation), "ndcg_at_10")
    )


def test_trained_tokens_are_counted_and_foretold(
    model: SentenceTransformer, data: Splits[QueryLists]
) -> None:
    """What training counts is what was estimated, but for the luck of the negatives drawn."""
    texts = data.train.texts
    estimate = estimate_trained_tokens(data.train, PLAN, texts, texts)
    run = Reports()
    train(model, PLAN, data, run)
    assert run.trained_tokens == pytest.approx(estimate, rel=0.1)
    (batch, *_) = PLAN.batches(data.train).shuffled(np.random.default_rng(0))
    distinct = set(texts.same_as(np.concatenate([batch.queries, batch.items])))
    by_hand = sum(int(texts.offsets[n + 1] - texts.offsets[n]) for n in distinct)
    assert encoder_of(model, data).count_tokens(batch.queries, batch.items) == by_hand


def test_the_learning_rate_rises_and_falls() -> None:
    """Over twenty steps: two to warm up, the peak, then evenly down to nearly nothing."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.9)
    schedule = linear_schedule(optimizer, total_steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == pytest.approx([0.45, 0.9, 0.9])
    assert np.diff(rates[2:]) == pytest.approx(np.full(17, -0.05))


def test_the_loop_steps_its_schedule(
    model: SentenceTransformer, data: Splits[QueryLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ends with a learning rate of zero: the schedule took every step."""
    made: list[torch.optim.Optimizer] = []
    original = loop.linear_schedule

    def remember(
        optimizer: torch.optim.Optimizer, total_steps: int
    ) -> torch.optim.lr_scheduler.LambdaLR:
        made.append(optimizer)
        return original(optimizer, total_steps)

    monkeypatch.setattr(loop, "linear_schedule", remember)
    train(model, PLAN, data, Reports())
    assert made[0].param_groups[0]["lr"] == 0


def test_a_diverged_model_gets_an_error(
    model: SentenceTransformer, data: Splits[QueryLists]
) -> None:
    """NaN weights are never scored."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(MethodError, match="diverged"):
        evaluate(model, data.validation)
