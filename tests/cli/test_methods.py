"""The commands for authors of methods."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from embedding_studio.cli.app import app
from embedding_studio.clickstream import merge_weights
from embedding_studio.errors import Conflict, MethodError, NotFound, PluginError
from embedding_studio.snapshot import Snapshot
from embedding_studio.testing.begin import file_name, text_of_new
from tests.testing.recorder import write as write_batch

SCALE = """
import numpy as np
from embedding_studio import FineTuningMethod, PluginMeta

class Scale(FineTuningMethod):
    meta = PluginMeta(name="Scale")
    main_metric = "size"
    def load_initial_model(self):
        return np.array([1.0])
    def suggest(self, trial):
        return {"rate": trial.suggest_float("rate", 1.1, 2.0)}
    def train(self, model, params, data, run):
        run.report(self.evaluate(model, data.validation), step=0)
        return model * params["rate"]
    def evaluate(self, model, split):
        return {"size": model[0] * np.arange(len(split))}
"""


def shell(*words: object) -> Result:
    return CliRunner().invoke(app, ["methods", *map(str, words)])


def write(folder: Path, old: str = "", new: str = "") -> Path:
    """Write the plugin with a change."""
    file = folder / "scale.py"
    file.write_text(SCALE.replace(old, new) if old else SCALE)
    return file


@pytest.mark.slow
def test_a_new_method_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`new` writes a file into the folder of plugins that `check` finds nothing wrong with."""
    monkeypatch.setenv("ES_PLUGINS_FOLDER", str(tmp_path / "mine"))
    made = shell("new", "My own-method 2", "--json")
    file = tmp_path / "mine" / "my_own_method_2.py"
    assert json.loads(made.stdout) == {"method": "My own-method 2", "file": str(file)}
    assert "class MyOwnMethod2(" in file.read_text()
    checked = shell("check", file)
    assert checked.exit_code == 0, checked.output
    assert "nothing is wrong: 8 checks passed" in checked.output
    assert "nothing to check" not in checked.output


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    """`new` writes over nothing, and says what to do."""
    file = tmp_path / "a.py"
    file.write_text("mine")
    refused = shell("new", "A", "--out", file)
    assert isinstance(refused.exception, Conflict)
    assert "--out" in str(refused.exception)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "file", "class_name"),
    [
        ("Zwei Öfen", "zwei_öfen.py", "ZweiÖfen"),
        ("2 towers", "method_2_towers.py", "Method2Towers"),
    ],
)
def test_names_become_identifiers(name: str, file: str, class_name: str) -> None:
    """Whatever a method may be called, its file and class can be."""
    assert file_name(name) == file
    assert f"class {class_name}(" in text_of_new(name)
    assert class_name.isidentifier()


def test_a_name_that_no_method_can_have_is_a_wrong_command_line(tmp_path: Path) -> None:
    """With exit status 2, and nothing is written."""
    refused = shell("new", "a/b", "--out", tmp_path / "b.py")
    assert refused.exit_code == 2
    assert "cannot name a method" in refused.output
    assert not [*tmp_path.iterdir()]


def test_what_is_right_is_told(tmp_path: Path) -> None:
    """A line for each check; one with nothing to check says why."""
    few = write_batch(tmp_path / "few", one_in=10)
    checked = shell("check", write(tmp_path), "--batch", few)
    assert checked.exit_code == 0, checked.output
    assert "suggest        ok" in checked.output
    assert "served         nothing to check: what it saves is no sentence-tr" in checked.output


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    """In words, or as what the method raised and in which line; what follows from it once."""
    file = write(tmp_path, "return model *", "return models *")
    few = write_batch(tmp_path / "few", one_in=10)
    options = ["--batch", few, "--skip", "suggest", "--skip", "served"]
    checked = shell("check", file, *options)
    assert isinstance(checked.exception, MethodError)
    assert str(checked.exception).startswith("6 of 6 checks failed: train, evaluate")
    assert "train          wrong: NameError: name 'models' is not defined" in checked.output
    assert "(line 14)" in checked.output
    assert "seeds          wrong, as train is" in checked.output
    same = write(tmp_path, 'model * params["rate"]', "model")
    told = shell("check", same, "--only", "train", "--json")
    assert isinstance(told.exception, MethodError)
    (outcome,) = json.loads(told.stdout)
    assert outcome["check"] == "train"
    assert not outcome["passed"]
    assert "nothing is learnt" in outcome["told"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("class Scale", "class Scale(", "does not load: SyntaxError"),
        ("main_metric", "main_metrics", "Scale.main_metric is None"),
        ("import numpy", "import numpi", "No module named 'numpi' .line 2."),
    ],
)
def test_a_plugin_that_does_not_load_is_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    """As the services tell it."""
    with pytest.raises(PluginError, match=told):
        raise shell("check", write(tmp_path, old, new)).exception or AssertionError


def test_one_method_of_a_file_is_chosen_by_name(tmp_path: Path) -> None:
    """A name that it has not is refused with those that it has; so is an unknown check."""
    refused = shell("check", write(tmp_path), "--method", "Other")
    assert isinstance(refused.exception, NotFound)
    assert "it has 'Scale'" in str(refused.exception)
    wrong = shell("check", write(tmp_path), "--only", "trian")
    assert wrong.exit_code == 2
    assert "there are suggest, train" in wrong.output


def test_sessions_of_ones_own_take_the_place_of_the_recorded(tmp_path: Path) -> None:
    """As `batch export --parquet` writes them; a folder of anything else is refused."""
    few = write_batch(tmp_path / "few", one_in=10)
    file = write(tmp_path, "model, split):", "model, split):\n        print('scored', len(split))")
    checked = shell("check", file, "--batch", few, "--only", "evaluate")
    assert checked.exit_code == 0, checked.output
    count = len(Snapshot(few, merge_weights()).usable().split_by_query(0.15, 0.15).validation)
    assert f"scored {count}\n" in checked.output
    refused = shell("check", file, "--batch", tmp_path)
    assert isinstance(refused.exception, NotFound)
    assert "batch export BATCH FOLDER --parquet" in str(refused.exception)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new", "options", "answer"),
    [("breakpoint(); return model *", [], "c"), ("return models *", ["--pdb"], "q")],
)
def test_a_debugger_stops_in_the_method(
    tmp_path: Path, new: str, options: list[str], answer: str
) -> None:
    """All runs in the process of the command: a breakpoint() stops there, --pdb at a failure."""
    file = write(tmp_path, "return model *", new)
    program = [sys.executable, "-m", "embedding_studio", "methods", "check", str(file)]
    done = subprocess.run(
        [*program, "--only", "train", *options],
        input=f"p params\n{answer}\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "{'rate': 1." in done.stdout, done.stderr
