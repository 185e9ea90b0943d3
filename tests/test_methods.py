"""Plugins: how they are found, and that one bad one does not take the others down."""

import json
import shutil
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedding_studio.clickstream import Splits, normalize_query, split_by_query
from embedding_studio.errors import UnknownMethod
from embedding_studio.methods import PluginMeta, discover_methods, is_better
from tests.iterations import TOYS, make_session

GOOD = """
from embedding_studio import FineTuningMethod, PluginMeta

class {name}(FineTuningMethod):
    meta = PluginMeta(name="{title}")
    main_metric = "m"
    def load_initial_model(self): ...
    def suggest(self, trial): return {{}}
    def train(self, model, params, data, run): return model
    def evaluate(self, model, split): return {{"m": 0.0}}
"""


def test_better_knows_the_direction() -> None:
    """Anything beats nothing, nothing beats its equal, and less is better when minimizing."""
    assert is_better("maximize", 0.0, None)
    assert is_better("maximize", 2.0, 1.0)
    assert not is_better("maximize", 1.0, 1.0)
    assert is_better("minimize", 1.0, 2.0)
    assert not is_better("minimize", 2.0, 1.0)


def test_one_bad_plugin_does_not_take_the_others_down(tmp_path: Path) -> None:
    """A file that fails to import, has no method or repeats a name is reported; the rest load."""
    (tmp_path / "a_good.py").write_text(GOOD.format(name="Good", title="Good"))
    (tmp_path / "b_broken.py").write_text("import no_such_module")
    (tmp_path / "c_empty.py").write_text("x = 1")
    (tmp_path / "d_twin.py").write_text(GOOD.format(name="Twin", title="Good"))
    (tmp_path / "e_slash.py").write_text(GOOD.format(name="Slash", title="a/b"))
    (tmp_path / "_private.py").write_text("raise RuntimeError")
    catalog = discover_methods(tmp_path)
    assert list(catalog.methods) == ["Good"]
    why = {Path(place).name: reason for place, reason in catalog.failures.items()}
    assert set(why) == {"b_broken.py", "c_empty.py", "d_twin.py", "e_slash.py"}
    assert "no_such_module" in why["b_broken.py"]
    assert "no concrete subclass" in why["c_empty.py"]
    assert "taken" in why["d_twin.py"]
    with pytest.raises(UnknownMethod, match=r"'Nope'; known: 'Good'; .*b_broken.py did not load"):
        catalog.get("Nope")


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a@b", "it's", "x" * 101])
def test_a_name_that_no_model_can_carry_is_refused(name: str) -> None:
    """A method's name is also its registered model's: what MLflow's URIs cannot hold is refused."""
    with pytest.raises(ValueError, match="cannot name a method"):
        PluginMeta(name=name)


def test_a_plugin_that_hangs_or_exits_is_left_out(tmp_path: Path) -> None:
    """An import that does not end, or that would end the process, costs only that plugin."""
    (tmp_path / "a_hanging.py").write_text("import threading\nthreading.Event().wait()\n")
    (tmp_path / "b_exiting.py").write_text("raise SystemExit(3)\n")
    shutil.copy(TOYS / "toys.py", tmp_path / "c_toys.py")
    catalog = discover_methods(tmp_path, import_seconds=2.0)
    assert "Toy" in catalog.methods
    assert "2 s (ES_PLUGIN_IMPORT_SECONDS)" in catalog.failures[str(tmp_path / "a_hanging.py")]
    assert "SystemExit(3)" in catalog.failures[str(tmp_path / "b_exiting.py")]


def test_default_save_and_load_round_trip_arrays(tmp_path: Path) -> None:
    """One array or a dictionary of them come back as they were, through safetensors alone."""
    method = discover_methods(TOYS).get("Toy")
    for number, model in enumerate(
        [np.eye(3), {"w": np.arange(6.0).reshape(2, 3).T, "b": np.ones(2)}]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        method.save(model, folder)
        assert [file.suffix for file in folder.iterdir()] == [".safetensors"]
        np.testing.assert_equal(method.load(folder), model)


def test_default_prepare_and_load_data_round_trip_sessions(tmp_path: Path) -> None:
    """Without a `prepare` of its own, a method's trials see the sessions as they were posted."""
    method = discover_methods(TOYS).get("Toy")
    session = make_session(1, search_meta={"lang": "de"}, user_id="u")
    splits = Splits([session], [replace(session, session_id="v")], [])
    assert method.prepare(splits, tmp_path)["train_sessions"] == 1
    assert method.load_data(tmp_path) == splits
    assert json.loads((tmp_path / "train.jsonl").read_text())["search_query"] == "query 1"


def test_a_query_stays_on_its_side_of_the_split() -> None:
    """No query, however spelt and however often asked, is in two parts; shares are as asked."""
    sessions = [make_session(n, query=f"Some  Query {n % 500}") for n in range(1000)]
    sessions += [make_session(5000 + n, query=f"some query {n}") for n in range(500)]
    splits = split_by_query(sessions, validation_share=0.2, test_share=0.1)
    parts = [
        {normalize_query(session.search_query) for session in part}
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 500
    assert len(parts[1]) == pytest.approx(100, abs=25)
    assert len(parts[2]) == pytest.approx(50, abs=20)
    again = split_by_query(list(reversed(sessions)), validation_share=0.2, test_share=0.1)
    assert {s.session_id for s in again.test} == {s.session_id for s in splits.test}


@pytest.mark.parametrize(
    "query",
    ["café crème", "señor", "Ḿǚ", "STRASSE", "한국어", "パーティー", "Zürich", "ﬁne ½ price", "ᾳ̈"],
)
def test_unicode_spellings_are_one_query(query: str) -> None:
    """Composed, decomposed, full-width and ligature spellings, in any case, land on one side."""
    spellings = {query, query.upper(), f"  {query}\u3000"}
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        spellings |= {unicodedata.normalize(form, spelling) for spelling in set(spellings)}
    sessions = [make_session(n, query=spelling) for n, spelling in enumerate(sorted(spellings))]
    parts = split_by_query(sessions, validation_share=0.3, test_share=0.3)
    sides = [part for part in (parts.train, parts.validation, parts.test) if part]
    assert len(sides) == 1
    assert len({normalize_query(session.search_query) for session in sides[0]}) == 1


def test_every_character_has_one_normal_form() -> None:
    """Normalising is the same for all Unicode spellings of a character, and changes nothing that is
    normal already."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cs", "Cn", "Co", "Lo"):  # Lo: no case
            continue
        normal = normalize_query(f"a{character}b")
        assert normalize_query(normal) == normal
        assert normalize_query(unicodedata.normalize("NFD", f"a{character}b")) == normal
