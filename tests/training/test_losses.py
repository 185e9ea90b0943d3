import math

import pytest
import torch
from torch import Tensor

from embedding_studio.training.losses import (
    listwise_softmax,
    pairwise_margin,
    probabilistic_margin,
)


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


def test_margin_weighs_pairs_and_leaves_an_item_out_of_its_own() -> None:
    """By hand: two unsure positives against each other and a negative; no item against itself."""
    loss = pairwise_margin(row(0.5, 0.4, 0.3), row(0.8, 0.6, 0), row(0.2, 0.4, 1), margin=0.2)
    costs = 0.8 * 0.4 * 0.1 + 0.8 * 1 * 0 + 0.6 * 0.2 * 0.3 + 0.6 * 1 * 0.1
    assert loss.item() == pytest.approx(costs / (0.8 * 0.4 + 0.8 + 0.6 * 0.2 + 0.6))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_probabilistic_margin_by_hand() -> None:
    """A pair weighs as much as the less sure of its two; a masked item makes none."""
    loss = probabilistic_margin(
        row(0.8, 0.5, 0.9, 0.1), row(0.7, 0, 0, 0), row(0.3, 0.4, 0, 1), margin=0.2
    )
    expected = (0.4 * sigmoid(0.2 - 0.3) + 0.7 * sigmoid(0.2 - 0.7)) / (0.4 + 0.7)
    assert loss.item() == pytest.approx(expected)


def test_probabilistic_margin_takes_each_query_for_itself() -> None:
    """By hand: pairs never cross queries, and the mean is over the pairs of both."""
    loss = probabilistic_margin(
        torch.tensor([[0.9, 0.1], [0.6, 0.2]], dtype=torch.float64),
        torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64),
        torch.tensor([[0.0, 1.0], [1.0, 0.5]], dtype=torch.float64),
        margin=0.0,
    )
    assert loss.item() == pytest.approx((sigmoid(-0.8) + 0.5 * sigmoid(0.4)) / 1.5)


LOSSES = [listwise_softmax, pairwise_margin, probabilistic_margin]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_raise_the_positive_and_lower_the_negatives(loss: object) -> None:
    """Downhill is up for what was meant, down for what was not, nowhere for what is masked."""
    assert callable(loss)
    scores = row(0.2, 0.3, 0.1, 0.25).requires_grad_()
    loss(scores, row(0.9, 0, 0, 0), row(0.1, 1, 0.5, 0), 0.3).backward()
    assert scores.grad is not None
    gradient = scores.grad[0].tolist()
    assert gradient[0] < 0 < gradient[2] < gradient[1]
    assert gradient[3] == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_small_steps(loss: object) -> None:
    """Autograd agrees with finite differences."""
    assert callable(loss)
    scores = row(0.2, 0.35, 0.1).requires_grad_()
    relevance, negative_weight = row(0.9, 0, 0.4), row(0.1, 1, 0.6)
    assert torch.autograd.gradcheck(lambda s: loss(s, relevance, negative_weight, 0.2), (scores,))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_positives_cost_nothing(loss: object) -> None:
    """A batch without a positive gives 0 and finite gradients."""
    assert callable(loss)
    scores = row(0.3, 0.2).requires_grad_()
    value = loss(scores, row(0, 0), row(1, 1), 0.1)
    value.backward()
    assert value.item() == 0
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
