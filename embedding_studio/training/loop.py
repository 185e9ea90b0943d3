"""The training loop: AdamW on what clicks say was meant, the best epoch kept."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from embedding_studio.clickstream import Splits
from embedding_studio.errors import MethodError
from embedding_studio.methods import TrialRun, is_better
from embedding_studio.training.batches import Batch, Batches
from embedding_studio.training.data import QueryLists
from embedding_studio.training.encoder import round_as_stored
from embedding_studio.training.evaluation import PerQuery, evaluate_vectors
from embedding_studio.training.inputs import Inputs
from embedding_studio.training.losses import listwise_softmax, pairwise_margin, probabilistic_margin
from embedding_studio.training.towers import BiEncoder, count_tokens

Weights = dict[str, Tensor]

_LOSSES = {
    "softmax": listwise_softmax,
    "margin": pairwise_margin,
    "prob_margin": probabilistic_margin,
}
_WARM_UP_SHARE = 0.1
_PATIENCE = 2
_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How a model is trained."""

    weight_decay: float = 0.01
    epochs: int = 3
    batch_size: int = 64
    loss: Literal["softmax", "margin", "prob_margin"] = "softmax"
    #: of the softmax loss, or the margin of the margin losses, in units of cosine,
    #: whatever a model compares by (see `unit_of`)
    temperature: float = 0.07
    #: other shown items per probably meant one, drawn anew each epoch
    negatives_per_click: int = 2
    #: shares of the tuned weights, in (0, 1), that are tried in a mixture with the start's
    blends: tuple[float, ...] = (0.5, 0.75)

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Self:
        """Return the plan that a hyperparameter set tells; what it does not is as above."""
        return cls(**{one.name: params[one.name] for one in fields(cls) if one.name in params})

    def batches(self, lists: QueryLists) -> Batches:
        return Batches(lists, self.batch_size, self.negatives_per_click)


def train(
    encoder: BiEncoder,
    plan: TrainingPlan,
    data: Splits[QueryLists],
    main_metric: str,
    run: TrialRun,
) -> None:
    """Fine-tune the encoder's models in place, as long as validation does not speak against it.

    Each epoch is scored on data.validation and reported, with the distance shift since the
    baseline: the similarity gap that was gained.
    The last epoch's weights are kept unless an earlier epoch's are clearly better (see
    `is_better`); after two epochs in a row that are clearly worse, training ends. Then the
    tuned weights are blended with the starting ones (WiSE-FT, Wortsman et al. 2022), and a blend is
    kept if it is clearly better than they are. The weights that are kept are rounded to the type in
    which the model is saved. Raises MethodError when nothing learns."""
    if not encoder.learning:
        raise MethodError("nothing of the model learns: freeze fewer layers")
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)
    start = copy_of(encoder.weights)
    learning = encoder.learning
    batches = plan.batches(data.train)
    optimizer = optimizer_of(encoder, plan)
    schedule = linear_schedule(optimizer, total_steps=plan.epochs * len(batches))

    best, best_scores, best_epoch = copy_of(learning), None, 0
    for epoch in range(plan.epochs):
        encoder.train()
        for batch in batches.shuffled(random):
            learn_from(batch, encoder, plan, optimizer)
            schedule.step()
            run.trained_tokens += encoder.count_tokens(batch.queries, batch.items)
        scores = evaluate(encoder, data.validation)
        if best_scores is None or not is_better("maximize", best_scores, scores[main_metric]):
            best, best_scores, best_epoch = copy_of(learning), scores[main_metric], epoch
        shift: dict[str, float] = {}
        if run.baseline is not None:
            gap = float(np.mean(scores["similarity_gap"]))
            shift = {"distance_shift": gap - run.baseline["similarity_gap"]}
        run.report({**scores, **shift}, step=epoch)
        if run.should_stop or epoch - best_epoch >= _PATIENCE:
            break

    put(best, learning)
    encoder.finish()
    assert best_scores is not None
    tuned = best = copy_of(encoder.weights)
    for share in plan.blends:
        blend = {name: torch.lerp(start[name], tuned[name], share) for name in tuned}
        put(blend, encoder.weights)
        blend_scores = evaluate(encoder, data.validation)[main_metric]
        if is_better("maximize", blend_scores, best_scores):
            best, best_scores = blend, blend_scores
    put(best, encoder.weights)
    for tower in encoder.towers:
        round_as_stored(tower.model)
    encoder.eval()


def learn_from(
    batch: Batch, encoder: BiEncoder, plan: TrainingPlan, optimizer: torch.optim.Optimizer
) -> None:
    """Take one step down the loss of a batch."""
    loss = batch_loss(encoder, batch, plan)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(encoder.learning.values(), _MAX_GRADIENT_NORM)
    optimizer.step()


def batch_loss(encoder: BiEncoder, batch: Batch, plan: TrainingPlan) -> Tensor:
    """Return the plan's loss over a batch."""
    queries, items = encoder.embed(batch.queries, batch.items)
    relevance, negative_weight = (
        torch.from_numpy(table).to(queries.device)
        for table in (batch.relevance, batch.negative_weight)
    )
    scores = encoder.scores(queries, items)
    return _LOSSES[plan.loss](scores, relevance, negative_weight, plan.temperature)


def evaluate(encoder: BiEncoder, lists: QueryLists) -> dict[str, float | PerQuery]:
    """Score the encoder as it is now, in the arithmetic that it learns in."""
    encoder.eval()
    queries = encoder.queries.vectors(lists.queries)
    return evaluate_vectors(lists, queries, encoder.items.vectors, encoder.similarity)


def estimate_trained_tokens(
    lists: QueryLists, plan: TrainingPlan, queries: Inputs, items: Inputs | None
) -> int:
    """Return the tokens that training by the plan will see, all of its epochs included.

    items: None where they keep their vectors."""
    batches = plan.batches(lists).shuffled(np.random.default_rng(0))
    one_epoch = sum(count_tokens(queries, items, batch.queries, batch.items) for batch in batches)
    return plan.epochs * one_epoch


def optimizer_of(encoder: BiEncoder, plan: TrainingPlan) -> torch.optim.AdamW:
    """Return AdamW with state for what learns and nothing else."""
    return torch.optim.AdamW(encoder.parameter_groups(plan.weight_decay), fused=True)


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


def copy_of(parameters: Mapping[str, nn.Parameter]) -> Weights:
    """Return the values as they are now."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@torch.no_grad()
def put(weights: Weights, parameters: Mapping[str, nn.Parameter]) -> None:
    """Set the parameters to `weights`."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
