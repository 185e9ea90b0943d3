"""What the overhead is made of."""

import pytest

from benchmarks.overhead import Outcome, typed


def test_the_share_within_counts_what_a_bare_script_does_not_do() -> None:
    """100 s of loading, training and scoring, and 5 s of everything else: 5 %."""
    seconds = {
        "load": 2.0, "train": 90.0, "evaluate": 8.0, "reports": 1.0, "save": 1.0,
        "start and end": 2.0, "between": 1.0,
    }  # fmt: skip
    assert Outcome(105.0, 130.0, seconds, [1]).share_within == pytest.approx(0.05)


def test_parameters_come_back_from_the_ledger_as_they_were() -> None:
    """MLflow keeps text; the bare script is to train with the same values, the seed apart."""
    params = {"learning_rate": 3.1e-4, "epochs": 4, "is_quick": True}
    logged = {name: str(value) for name, value in params.items()}
    assert typed({**logged, "seed": "7"}) == params
