"""Losses over a matrix of queries x items whose relevance is a probability."""

import torch
from torch import Tensor


def listwise_softmax(
    scores: Tensor, relevance: Tensor, negative_weight: Tensor, temperature: float
) -> Tensor:
    """InfoNCE with several, uncertain positives: each one against the negatives, not the others.

    scores: (n_queries, n_items) cosine similarities. relevance: the same shape, in [0, 1]: how
    surely an item is a positive of the query, 0 for no positive. negative_weight: the same shape,
    in [0, 1]: how surely it is a negative; 0 masks it. temperature: > 0, in units of cosine.

    For a positive i of query q, with u = scores / temperature, the loss is
        log(exp(u_qi) + sum_j negative_weight_qj exp(u_qj)) - u_qi,
    j over all items: i is among them with what is left of its relevance, which dampens the gradient
    of unsure positives. The mean over all positives, weighted by relevance, is returned (0 when
    there is none). van den Oord et al. 2018 (InfoNCE); weights on negatives as in Robinson et al.
    2021 and Chuang et al. 2020 (false negatives in contrastive learning)."""
    logits = scores / temperature
    negatives = torch.logsumexp(logits + torch.log(negative_weight), dim=1, keepdim=True)
    losses = torch.nn.functional.softplus(negatives - logits)
    return (relevance * losses).sum() / relevance.sum().clamp_min(1e-12)


def pairwise_margin(
    scores: Tensor, relevance: Tensor, negative_weight: Tensor, margin: float
) -> Tensor:
    """Hinge loss: a positive should beat each negative of its query by `margin`.

    Shapes as in `listwise_softmax`; margin in units of cosine. The mean of
    max(0, margin - s_i + s_j) over all pairs of a positive i and another item j of the same query,
    weighted by relevance_i * negative_weight_j; 0 when there are none. Weston & Watkins 1999;
    Joachims 2002."""
    lead, positive, negative = _pairs(scores, relevance, negative_weight)
    weights = positive * negative
    return (weights * (margin - lead).clamp_min(0)).sum() / weights.sum().clamp_min(1e-12)


def probabilistic_margin(
    scores: Tensor, relevance: Tensor, negative_weight: Tensor, margin: float
) -> Tensor:
    """The chance that a positive does not beat a negative by `margin`, as a logistic model has it.

    Shapes as in `listwise_softmax`; margin in units of cosine. The mean of
    sigmoid(margin - (s_i - s_j)) over all pairs of a positive i and another item j of the same
    query, weighted by min(relevance_i, negative_weight_j): a pair is as sure as the less sure of
    the two; 0 when there are none. Unlike a hinge it saturates: a few hopeless pairs do not rule.
    EulerSearch's EmbeddingStudio divides by the number of pairs, so that masked and unsure ones
    shrink the step; here it is the sum of the weights."""
    lead, positive, negative = _pairs(scores, relevance, negative_weight)
    weights = torch.minimum(positive, negative)
    return (weights * torch.sigmoid(margin - lead)).sum() / weights.sum().clamp_min(1e-12)


def _pairs(
    scores: Tensor, relevance: Tensor, negative_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, a row per positive i and a column per item j: s_i - s_j, (n_positives, n_items);
    relevance_i, (n_positives, 1); negative_weight_j, (n_positives, n_items), 0 where j is i."""
    query, item = relevance.nonzero(as_tuple=True)
    lead = scores[query, item][:, None] - scores[query]
    negative = negative_weight[query].scatter(1, item[:, None], 0.0)
    return lead, relevance[query, item][:, None], negative
