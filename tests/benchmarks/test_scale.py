"""What became of the time of slots, and of the orchestrator's."""

import pytest

from benchmarks.scale import JOB, Meter, Slots, cost


def test_the_shares_of_the_slots_time_make_up_the_whole() -> None:
    """Two slots, four trials that sleep 5 s, a wall time of 12.5 s: 25 s of slots, 20 asleep."""
    slots = Slots("process", 2, 12.5, 5.0, [5.5, 5.5, 5.25, 5.25], [6.0, 6.0, 5.75, 5.75])
    assert slots.ideal == 10.0
    assert slots.efficiency == pytest.approx(0.8)
    assert slots.shares == pytest.approx(
        {"asleep": 0.8, "reports": 0.06, "start and end": 0.08, "empty": 0.06}
    )


class Work:
    """Takes 3 s in `run`, 2 of them in `report`, and another in `start`, which calls it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def start(self) -> None:
        self.run()
        self.seconds += 1.0

    def run(self) -> None:
        self.report()
        self.seconds += 1.0

    def report(self) -> None:
        self.seconds += 2.0


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def meter(work: Work) -> Meter:
    return Meter(now=lambda: work.seconds)


def test_a_phase_has_its_own_time_and_a_trial_that_of_all_phases(work: Work, meter: Meter) -> None:
    """What runs within another phase is not counted twice; what is in none is the rest."""
    meter.wrap(work, "run", JOB)
    meter.wrap(work, "report", "log reports")
    meter.begin()
    work.start()
    meter.begin()
    meter.end()
    first, second = meter.trials
    assert first == {"log reports": 2.0, JOB: 1.0, "rest": 1.0}
    assert cost(first) == 3.0
    assert cost(second) == 0.0


def test_outside_trials_time_is_kept_apart(work: Work, meter: Meter) -> None:
    """What happens before the first trial or after the last is no trial's."""
    meter.wrap(work, "report", "judge")
    work.report()
    meter.begin()
    meter.end()
    work.report()
    assert meter.outside == {"judge": 4.0}
    assert meter.trials == [{"rest": 0.0}]
