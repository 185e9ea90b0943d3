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


def test_better_is_by_more_than_one_standard_error() -> None:
    """Differences of 0, 1 and 2: mean 1, error 0.58. Of -1, 1 and 0.3: mean 0.1, error 0.59. One
    number has no error, and beside an array its mean counts."""
    start = np.array([0.5, 0.25, 1.0])
    assert is_better("maximize", start + np.array([0, 1, 2]), start)
    assert not is_better("minimize", start + np.array([0, 1, 2]), start)
    assert not is_better("maximize", start + np.array([-1, 1, 0.3]), start)
    assert not is_better("maximize", start, start)
    assert is_better("maximize", 0.59, start)


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
    assert "(line 1)" in why["b_broken.py"]
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


def load_one(tmp_path: Path, changes: str) -> str:
    """Return why a plugin with these attributes is none; "" if it is one."""
    text = GOOD.format(name="Good", title="Good") + "".join(
        f"    {line}\n" for line in changes.splitlines()
    )
    (tmp_path / "plugin.py").write_text(text)
    (tmp_path / "another.py").write_text(GOOD.format(name="Another", title="Another"))
    catalog = discover_methods(tmp_path)
    assert "Another" in catalog.methods
    assert ("Good" in catalog.methods) == (not catalog.failures)
    return catalog.failures.get(str(tmp_path / "plugin.py"), "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("del main_metric", "Good.main_metric is None: it must be the name of a metric"),
        ("main_metric = ''", "Good.main_metric is ''"),
        ("main_metric = ('m', 'n')", "Good.main_metric is ('m', 'n')"),
        (
            "direction = 'maximise'",
            "Good.direction is 'maximise': it must be one of maximize, mini",
        ),
        ("sampler = 'tpee'", "Good.sampler is 'tpee': it must be one of tpe, random, gp, grid"),
        (
            "pruner = None",
            "Good.pruner is None: it must be one of hyperband, asha, median, patient",
        ),
        ("budget = 8", "Good.budget is 8: it must be a Budget"),
        ("from embedding_studio import Budget; budget = Budget(max_minutes=-1)", "Good.budget is"),
        ("folds = 0", "Good.folds is 0: it must be 1 to 10"),
        ("promote = 'always'", "Good.promote is 'always': it must be one of significant, better"),
        ("num_cpus = 0", "Good.num_cpus is 0: it must be above 0"),
        ("num_gpus = '1'", "Good.num_gpus is '1'"),
        ("test_share = 15", "Good.test_share is 15: it must be between 0 and 1"),
        ("test_share, validation_share = 0.5, 0.5", "leave nothing to train on"),
        ("event_weights = {'click': -1}", "Good.event_weights is {'click': -1}"),
        (
            "recommended = {1: 2}",
            "Good.recommended is {1: 2}: it must be a dictionary by",
        ),
        ("meta = 'Good'", "Good.meta is no PluginMeta"),
        ("del evaluate", "Good lacks evaluate: a method needs evaluate, load_initial_model, sugg"),
        ("evalute = evaluate; del evaluate", "is Good.evalute meant to be evaluate?"),
        (
            "main_metrics = main_metric; del main_metric",
            "is Good.main_metrics meant to be main_met",
        ),
        ("prunner = 'asha'", "is Good.prunner meant to be pruner?"),
        ("def prepares(self, sessions, folder): ...", "is Good.prepares meant to be prepare?"),
        ("direction = 'up'\nsampler = 1", "Good.sampler is 1"),
    ],
)
def test_what_a_class_states_is_checked_when_it_loads(
    tmp_path: Path, changes: str, words: str
) -> None:
    """The message names the class, what it states and the choices, all of them at once, and the
    methods that are missing; the plugin beside it loads."""
    assert words in load_one(tmp_path, changes)


@pytest.mark.parametrize(
    "changes",
    [
        "def __init__(self): self.main_metric = 'm'",
        "samplers = ['a', 'b']; budgets = 3; loads = True; _prepare = print; evaluated = 0",
        "pruner = 'asha'; num_cpus = 2; num_gpus = 0.5; test_share = 0.3; load_dataset = print",
        "main_metric = 'ndcg@10'",
    ],
)
def test_ordinary_classes_are_not_suspected(tmp_path: Path, changes: str) -> None:
    """Attributes of one's own, and such as are set when an instance is made."""
    assert load_one(tmp_path, changes) == ""


def test_a_base_class_beside_its_methods_is_none(tmp_path: Path) -> None:
    """Methods of one file may share what is no method by itself."""
    text = GOOD.format(name="Good", title="Good").replace(
        "class Good(FineTuningMethod):",
        "class Base(FineTuningMethod):\n    main_metric = 'm'\n\nclass Good(Base):",
    )
    (tmp_path / "plugin.py").write_text(text)
    catalog = discover_methods(tmp_path)
    assert (list(catalog.methods), catalog.failures) == (["Good"], {})


def test_a_changed_folder_is_noticed(tmp_path: Path) -> None:
    """A file that is new, changed or gone; the methods of the others are not made anew."""
    good, other = tmp_path / "good.py", tmp_path / "other.py"
    good.write_text(GOOD.format(name="Good", title="Good"))
    other.write_text(GOOD.format(name="Other", title="Other"))
    first = discover_methods(tmp_path)
    assert first.renewed() is first
    good.write_text(GOOD.format(name="Better", title="Better"))
    second = first.renewed()
    assert set(second.methods) == {"Better", "Other"}
    assert second.get("Other") is first.get("Other")
    other.unlink()
    (tmp_path / "third.py").write_text(GOOD.format(name="Third", title="Third"))
    assert set(second.renewed().methods) == {"Better", "Third"}


@pytest.mark.parametrize(
    "broken",
    ["import no_such", GOOD[: len(GOOD) // 2], "", GOOD.format(name="G", title="Good")[:-60]],
)
def test_a_broken_new_version_leaves_the_former_one(tmp_path: Path, broken: str) -> None:
    """Half a file, an error, a method that lacks something: what was loaded stays, and is told to
    be the former one, until the file loads again."""
    file = tmp_path / "good.py"
    file.write_text(GOOD.format(name="Good", title="Good"))
    first = discover_methods(tmp_path)
    file.write_text(broken)
    second = first.renewed()
    assert second.get("Good") is first.get("Good")
    assert "'Good' stays as it was before" in second.failures[str(file)]
    assert second.renewed() is second
    file.write_text(GOOD.format(name="Good", title="Good") + "\n")
    third = second.renewed()
    assert not third.failures
    assert third.get("Good") is not first.get("Good")
