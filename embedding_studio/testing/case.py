"""The checks of a method as a class of tests."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

from embedding_studio.methods import FineTuningMethod, Parameters
from embedding_studio.plugin_checks import check_attributes, check_class
from embedding_studio.testing import checks
from embedding_studio.testing.bench import Bench


class MethodTestCase:
    """Subclass it, name your method, and pytest runs each check of `embedding_studio.testing`:

        class TestMine(MethodTestCase):
            method = MyMethod

    method: a class or an instance, as an attribute or as what a fixture of that name returns.
    initial_model: what ES_INITIAL_MODEL names meanwhile; by default a small encoder that knows
    nothing. params, frozen, keeps_items: as in `Bench`. A check that makes no sense for a method is
    left out by `test_evaluate = None`, say."""

    method: ClassVar[Any]
    initial_model: ClassVar[str | None] = None
    params: ClassVar[Parameters | None] = None
    frozen: ClassVar[Sequence[str]] = ()
    keeps_items: ClassVar[bool] = False

    @pytest.fixture(scope="class")
    @classmethod
    def bench(
        cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Bench]:
        """The method at work on the recorded batch; its steps are shared by all checks."""
        try:
            given = request.getfixturevalue("method")
        except pytest.FixtureLookupError:
            given = getattr(cls, "method", None)
        if isinstance(given, type) or not isinstance(given, FineTuningMethod):
            check_class(given)
            given = given()
        check_attributes(given)
        folder = tmp_path_factory.mktemp("method")
        bench = Bench(given, folder, params=cls.params, frozen=cls.frozen)
        bench.keeps_items = cls.keeps_items
        with bench.standing_in(cls.initial_model):
            yield bench

    def test_suggest(self, bench: Bench) -> None:
        _run(checks.check_suggest, bench)

    def test_train(self, bench: Bench) -> None:
        _run(checks.check_train, bench)

    def test_evaluate(self, bench: Bench) -> None:
        _run(checks.check_evaluate, bench)

    def test_save_and_load(self, bench: Bench) -> None:
        _run(checks.check_save_and_load, bench)

    def test_stop(self, bench: Bench) -> None:
        _run(checks.check_stop, bench)

    def test_seeds(self, bench: Bench) -> None:
        _run(checks.check_seeds, bench)

    def test_frozen(self, bench: Bench) -> None:
        _run(checks.check_frozen, bench)

    def test_served(self, bench: Bench) -> None:
        _run(checks.check_served, bench)


def _run(check: checks.Check, bench: Bench) -> None:
    if nothing_to_check := check(bench):
        pytest.skip(nothing_to_check)
