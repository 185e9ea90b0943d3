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
    j over the other items; the mean over all positives, weighted by relevance, is returned (0 when
    there is none). van den Oord et al. 2018 (InfoNCE); weights on negatives as in Robinson et al.
    2021 and Chuang et al. 2020 (false negatives in contrastive learning).
    """
    logits = scores / temperature
    negatives = torch.logsumexp(logits + torch.log(negative_weight), dim=1, keepdim=True)
    losses = torch.nn.functional.softplus(negatives - logits)
    return (relevance * losses).sum() / relevance.sum().clamp_min(1e-12)


def pairwise_margin(
    scores: Tensor, relevance: Tensor, negative_weight: Tensor, margin: float
) -> Tensor:
    """Hinge loss: a positive should beat each negative of its query by `margin`.

    Shapes as in `listwise_softmax`; margin in units of cosine. The mean of
    max(0, margin - s_i + s_j) over all pairs of a positive i and a negative j of the same query,
    weighted by relevance_i * negative_weight_j; 0 when there are none. Weston & Watkins 1999;
    Joachims 2002.
    """
    gaps = margin - scores[:, :, None] + scores[:, None, :]
    weights = relevance[:, :, None] * negative_weight[:, None, :]
    return (weights * gaps.clamp_min(0)).sum() / weights.sum().clamp_min(1e-12)
