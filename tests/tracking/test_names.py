"""Names of parameters and metrics in MLflow."""

import pytest
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from embedding_studio.errors import MethodError
from embedding_studio.tracking.names import TRAINED_TOKENS, from_mlflow, to_mlflow

ODD = ["ndcg@10", "lr(log)", "a:@", "a:40@", "a:40:b", "a//b", "/a", "../a", "a/", ".", "é≥大 ",
       "a\n", "100 %", TRAINED_TOKENS]  # fmt: skip


@pytest.mark.parametrize("name", ["ndcg_at_10", "val/loss", "a:b", "größe", "top 10", "a.b-c"])
def test_a_name_that_mlflow_takes_stays(name: str) -> None:
    """What MLflow can keep is kept as it is."""
    assert to_mlflow(name) == from_mlflow(name) == name


@pytest.mark.parametrize("name", ODD)
def test_any_other_name_is_found_again(name: str) -> None:
    """MLflow takes what is made of it, and it tells what it was made of."""
    key = to_mlflow(name)
    _validate_metric_name(key)  # type: ignore[no-untyped-call]
    _validate_param_name(key)  # type: ignore[no-untyped-call]
    assert from_mlflow(key) == name
    assert key != TRAINED_TOKENS


def test_no_two_names_become_one() -> None:
    """Each of many names has a key of its own."""
    names = [*ODD, *map(to_mlflow, ODD)]
    assert len({to_mlflow(name) for name in names}) == len(set(names))


@pytest.mark.parametrize("name", ["", "x" * 201, "@" * 60])
def test_a_name_that_cannot_be_kept_is_refused_in_our_words(name: str) -> None:
    """None at all, or more characters than MLflow keeps."""
    with pytest.raises(MethodError, match=r"is empty|200 are allowed"):
        to_mlflow(name)
