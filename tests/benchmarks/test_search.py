"""What the benchmark of the search makes of three searches."""

from argparse import Namespace

from benchmarks.search import Finished, Found, summarize

ARGS = Namespace(seeds=2, trials=3, sessions=10, pruner="asha", cores=2)


def found(*values: float, epochs: int, seconds: float) -> Found:
    """A search whose trials ended one after the other, each with as many epochs."""
    return Found(
        finished=[
            Finished(value, (number + 1) * seconds, (number + 1) * epochs)
            for number, value in enumerate(values)
        ],
        trials=len(values),
        epochs=len(values) * epochs,
        seconds=len(values) * seconds,
        trained_tokens=0,
    )


def test_ratios_are_of_medians_until_near_the_sequential_searchs_best() -> None:
    """99 % of the best of (a) is near; a search that never came near counts with all it took."""
    a = found(0.5, 0.995, 1.0, epochs=10, seconds=10.0)  # near after 20 epochs
    b = found(0.2, 0.3, 0.99, epochs=2, seconds=3.0)  # near after 6
    c = found(0.2, 0.98, epochs=2, seconds=1.0)  # never: 4 epochs, 2 seconds
    summary = summarize([(a, b, c), (a, b, c)], ARGS)
    assert summary["epochs"] == [(20, 6, 4)] * 2
    assert summary["epochs_ratio_pruned"] == 0.3
    assert summary["wall_ratio_pruned"] == 0.45
    assert summary["wall_ratio_parallel"] == 0.1
    assert summary["ndcg_loss"] == 0.01
    assert summary["ndcg_loss_parallel"] == 0.02
