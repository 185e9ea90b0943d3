import math

import pytest
import torch
from torch import Tensor

from embedding_studio.training.losses import listwise_softmax, pairwise_margin


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_softmax_of_one_positive_is_cross_entropy() -> None:
    """With certain labels the loss is -log softmax of the positive."""
    scores = row(0.5, 0.2, -0.1)
    loss = listwise_softmax(scores, row(1, 0, 0), row(0, 1, 1), temperature=0.5)
    expected = -math.log(math.exp(1.0) / (math.exp(1.0) + math.exp(0.4) + math.exp(-0.2)))
    assert loss.item() == pytest.approx(expected)


def test_positives_do_not_compete() -> None:
    """Each of two positives is set against the negative alone."""
    loss = listwise_softmax(row(0.3, 0.3, 0.3), row(1, 1, 0), row(0, 0, 1), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(2))


def test_uncertainty_weighs_positives_and_negatives() -> None:
    """By hand: relevance weighs a positive's loss, negative_weight an exponential in its sum."""
    loss = listwise_softmax(row(1, 0, 0), row(0.75, 0.25, 0), row(0, 0, 0.5), temperature=1.0)
    first = math.log(math.e + 0.5) - 1
    second = math.log(1 + 0.5)
    assert loss.item() == pytest.approx(0.75 * first + 0.25 * second)


def test_masked_negatives_change_nothing() -> None:
    """An item of weight 0 has no influence, however similar, and gets no gradient."""
    scores = row(0.1, 0.0, 5.0).requires_grad_()
    loss = listwise_softmax(scores, row(1, 0, 0), row(0, 1, 0), temperature=1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.1)))
    assert scores.grad is not None
    assert scores.grad[0, 2].item() == 0


def test_margin_by_hand() -> None:
    """Only the negative closer than the margin costs, and it costs what is missing."""
    loss = pairwise_margin(row(0.8, 0.75, 0.1), row(1, 0, 0), row(0, 1, 1), margin=0.2)
    assert loss.item() == pytest.approx((0.2 - 0.05) / 2)


@pytest.mark.parametrize("loss", [listwise_softmax, pairwise_margin])
def test_no_positives_cost_nothing(loss: object) -> None:
    """A batch without a positive gives 0 and finite gradients."""
    assert callable(loss)
    scores = row(0.3, 0.2).requires_grad_()
    value = loss(scores, row(0, 0), row(1, 1), 0.1)
    value.backward()
    assert value.item() == 0
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
