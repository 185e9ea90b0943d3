"""One bad plugin does not take the others down."""

import shutil
from pathlib import Path

import pytest

from embedding_studio.methods import discover_methods
from embedding_studio.tasks import TaskStatus
from tests.faults.harness import Yard
from tests.iterations import TOYS

BAD = {
    "broken.py": "import a_module_that_is_nowhere\n",
    "ending.py": "raise SystemExit(3)\n",
    "nothing.py": "answer = 42\n",
    "untidy.py": "class Half:\n",
    "zz_double.py": (TOYS / "toys.py").read_text(),
}
HANGING = "import threading\nthreading.Event().wait()\n"


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with the toys and with one plugin of each bad kind."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    shutil.copy(TOYS / "toys.py", folder / "toys.py")
    for name, text in BAD.items():
        (folder / name).write_text(text)
    return folder


def test_each_bad_plugin_is_named_and_the_rest_load(plugins: Path) -> None:
    """One that does not import, ends the process, defines nothing, is no Python, repeats a name or
    hangs: its file is among the failures, and every good method is there."""
    (plugins / "aa_hanging.py").write_text(HANGING)
    catalog = discover_methods(plugins, import_seconds=5.0)
    assert {Path(place).name for place in catalog.failures} == {*BAD, "aa_hanging.py"}
    why = {Path(place).name: reason for place, reason in catalog.failures.items()}
    assert "a_module_that_is_nowhere" in why["broken.py"]
    assert "SystemExit" in why["ending.py"]
    assert "'Toy' is taken" in why["zz_double.py"]
    assert "did not end within 5 s" in why["aa_hanging.py"]
    assert {"Toy", "Slow", "Paced"} <= set(catalog.methods)


@pytest.mark.slow
@pytest.mark.parametrize(
    "executor", ["inline", pytest.param("process:1", marks=pytest.mark.faults)]
)
def test_a_worker_beside_bad_plugins_names_them_and_works(
    yard: Yard, plugins: Path, executor: str
) -> None:
    """It logs each bad plugin when it starts, and a task of a good method is done."""
    yard.bench.post_sessions()
    task = yard.bench.post_task(trials=1)
    yard.start_worker(plugins_folder=plugins, executor=executor, lease_seconds=10.0)
    yard.wait_for(task)
    assert yard.now(task).status is TaskStatus.DONE, yard.log
    for name in BAD:
        assert f"{plugins / name} did not load" in yard.log
    yard.drain()
