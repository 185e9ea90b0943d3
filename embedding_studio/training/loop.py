"""The training loop: AdamW on what clicks say was meant, the best epoch kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from embedding_studio.clickstream import Splits
from embedding_studio.methods import TrialRun
from embedding_studio.training.batches import Batch, Batches
from embedding_studio.training.data import QueryLists
from embedding_studio.training.encoder import TokenizedTexts, embed, freeze_layers
from embedding_studio.training.evaluation import evaluate
from embedding_studio.training.losses import listwise_softmax, pairwise_margin

Weights = dict[str, Tensor]

_WARM_UP_SHARE = 0.1
_PATIENCE = 2
_MAX_GRADIENT_NORM = 1.0
_BLENDS = (0.5, 0.75)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """temperature: of the softmax loss, or the margin of the margin loss, in units of cosine.

    negatives_per_click: other shown items per probably meant one, drawn anew each epoch.
    debias: learn from the click model's relevance; else from "was it ever clicked".
    """

    learning_rate: float
    weight_decay: float = 0.01
    frozen_layers: int = 3
    epochs: int = 3
    batch_size: int = 64
    loss: Literal["softmax", "margin"] = "softmax"
    temperature: float = 0.07
    negatives_per_click: int = 2
    debias: bool = True


def train(
    model: SentenceTransformer,
    plan: TrainingPlan,
    data: Splits[QueryLists],
    main_metric: str,
    run: TrialRun,
) -> SentenceTransformer:
    """Fine-tune the model in place and return it with the weights that validation liked best.

    Each epoch is scored on data.validation and reported, with the distance shift since the start.
    Epochs end early after two without a better main metric. At the end the tuned weights are
    blended with the starting ones (WiSE-FT, Wortsman et al. 2022) and the best blend, the tuned
    weights themselves among them, is kept.
    """
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)
    gap_before = float(np.mean(evaluate(model, data.validation)["similarity_gap"]))
    freeze_layers(model, plan.frozen_layers)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = copy_of(learning)
    batches = Batches(data.train, plan.batch_size, plan.negatives_per_click, plan.debias)
    optimizer = torch.optim.AdamW(
        learning.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay
    )
    schedule = linear_schedule(optimizer, total_steps=plan.epochs * len(batches))

    best, best_score, best_epoch = start, -np.inf, 0
    for epoch in range(plan.epochs):
        model.train()
        for batch in batches.shuffled(random):
            loss = batch_loss(model, data.train.texts, batch, plan)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(learning.values(), _MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
        scores = evaluate(model, data.validation)
        score = float(np.mean(scores[main_metric]))
        if score > best_score:
            best, best_score, best_epoch = copy_of(learning), score, epoch
        shift = float(np.mean(scores["similarity_gap"])) - gap_before
        run.report({**scores, "distance_shift": shift}, step=epoch)
        if epoch - best_epoch >= _PATIENCE:
            break

    tuned = best
    for share in _BLENDS:
        blend = {name: torch.lerp(start[name], tuned[name], share) for name in tuned}
        put(blend, learning)
        score = float(np.mean(evaluate(model, data.validation)[main_metric]))
        if score > best_score:
            best, best_score = blend, score
    put(best, learning)
    return model.eval()


def batch_loss(
    model: SentenceTransformer, texts: TokenizedTexts, batch: Batch, plan: TrainingPlan
) -> Tensor:
    """Encode a batch's distinct texts once and return the plan's loss."""
    distinct, place = np.unique(np.concatenate([batch.queries, batch.items]), return_inverse=True)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=has_fast_bfloat16()):
        vectors = embed(model, texts, distinct)
    vectors = nn.functional.normalize(vectors, dim=1)[torch.from_numpy(place)]
    scores = vectors[: len(batch.queries)] @ vectors[len(batch.queries) :].T
    relevance = torch.from_numpy(batch.relevance).to(scores.device)
    negative_weight = torch.from_numpy(batch.negative_weight).to(scores.device)
    loss = listwise_softmax if plan.loss == "softmax" else pairwise_margin
    return loss(scores, relevance, negative_weight, plan.temperature)


def linear_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Raise the learning rate over the first tenth of the steps, then lower it towards zero."""
    warm_up = max(1, round(_WARM_UP_SHARE * total_steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return max(0.0, (total_steps - step) / max(1, total_steps - warm_up))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def has_fast_bfloat16() -> bool:
    """Return whether bfloat16 is the faster arithmetic here (2.5 times on AVX512-BF16)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def copy_of(parameters: Mapping[str, nn.Parameter]) -> Weights:
    """Return the values as they are now."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@torch.no_grad()
def put(weights: Weights, parameters: Mapping[str, nn.Parameter]) -> None:
    """Set the parameters to `weights`."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
