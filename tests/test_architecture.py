"""The house's rules: who may import whom, and what the quick commands never load."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "embedding_studio"

# each may import those in the tiers above it, and its own
TIERS = [
    {"errors", "projects", "clickstream", "items", "labels", "snapshot", "reports", "tasks"}
    | {"report_page", "compare_page"}
    | {
        "schedules",
        "models",
        "keys",
        "workers",
        "users",
        "settings",
        "outbound",
        "logs",
        "deletion",
    }
    | {"plain"}
    | {"loaders.places"}
    | {"clock", "threads"}
    | {"tracking.names", "tracking.environment", "tracking.reader"},
    {"methods", "plugin_checks", "executors.base"},
    {"search", "store", "executors", "training", "wire", "imports", "loaders"}
    | {"engine.promotion", "engine.jobs", "engine.labels", "engine.scores", "engine.snapshot"}
    | {"engine.report"}
    | {"engine.failures"},
    {"tracking", "engine.lease", "errands.schedules", "errands.webhooks", "testing"},
    {"engine", "errands", "api", "pages"},
    {"engine.worker", "client", "serving"},
    {"services", "demo", "doctor"},
    {"cli"},
    {"__main__"},
]
HOMES = {
    "mlflow": {"tracking"},
    "optuna": {"search"},
    "matplotlib": {"search"},
    "jinja2": {"report_page"},
    "pymongo": {"store.mongo", "store.mongo_former", "loaders.databases"},
    "bson": {"store.mongo", "store.mongo_former", "loaders.databases"},
    "sqlite3": {"store.sqlite", "store.sqlite_file", "tracking.local", "tracking.reader"}
    | {"loaders.files"},
    "sqlalchemy": {"tracking.local", "loaders.databases", "imports.sql"},
    "apscheduler": {"engine.worker"},
    "fastapi": {"api", "pages", "serving.app"},
    "limits": {"api"},
    "msgspec": {"wire.quick", "store.usage", "store.sqlite", "imports.readers"}
    | {"serving.openai"},
    "pyarrow": {"serving.vectors", "imports.parquet", "imports.stream", "snapshot"},
    "yaml": {"imports.yaml", "loaders.sources"},
    "uvicorn": {"api.connections", "api.server"},
    "h11": {"api.connections"},
    "torch": {"training", "testing"},
    "sentence_transformers": {"training", "testing"},
    "transformers": {"training", "testing"},
    "pytest": {"testing.case"},
    "cronsim": {"errands.schedules"},
    "httpcore": {"outbound"},
    "fsspec": {"loaders"},
    "onnxruntime": {"serving.export"},
    "openvino": {"serving.export"},
    "typer": {"cli"},
    "ray": {"executors.ray_driver", "executors.ray_node"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    parts = list(file.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


@cache
def imports_of(file: Path) -> set[str]:
    """Return what a file imports when it runs; imports for type checking alone do not count."""
    tree = ast.parse(file.read_text())
    typing_only = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def tier_of(module: str) -> int:
    """The most specific entry decides: `executors.base` before `executors`."""
    for candidate in (module, module.split(".", maxsplit=1)[0]):
        for number, tier in enumerate(TIERS):
            if candidate in tier:
                return number
    raise AssertionError(f"{module} has no place in the house: add it to TIERS")


@pytest.mark.parametrize("file", modules(), ids=name_of)
def test_imports_go_one_way(file: Path) -> None:
    """A module imports its own tier and those before it, never one that comes after."""
    module = name_of(file)
    if module == "__init__":
        return
    for imported in imports_of(file):
        if imported.startswith("embedding_studio."):
            other = imported.removeprefix("embedding_studio.")
            assert tier_of(other) <= tier_of(module), f"{module} imports {other}"


@pytest.mark.parametrize("file", modules(), ids=name_of)
def test_every_third_party_has_one_home(file: Path) -> None:
    """mlflow is imported in tracking alone, pymongo in store/mongo alone, and so on."""
    module = name_of(file)
    for imported in imports_of(file):
        homes = HOMES.get(imported.split(".", maxsplit=1)[0])
        if homes is not None:
            assert any(module == home or module.startswith(f"{home}.") for home in homes), (
                f"{module} imports {imported}"
            )


def loaded_by(statement: str) -> set[str]:
    program = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import embedding_studio.api.server, embedding_studio.store.sqlite",
        "import embedding_studio.api.app, embedding_studio.store.mongo",
        "import embedding_studio.client",
    ],
)
def test_api_and_client_load_no_heavy_library(statement: str) -> None:
    """The API and its client start without torch, mlflow and optuna, whatever the store."""
    heavy = {"torch", "mlflow", "optuna", "sentence_transformers", "transformers"}
    assert not heavy & loaded_by(statement)


def test_mlflow_is_loaded_when_it_is_opened() -> None:
    """What needs MLflow loads it with its environment set, and not before."""
    loaded = loaded_by("import embedding_studio.engine.worker, embedding_studio.errands.sweep")
    assert "embedding_studio.tracking" in loaded
    assert "mlflow" not in loaded


def test_the_command_line_answers_at_once() -> None:
    """`--help` loads nothing that a command needs: neither the API's libraries nor pydantic."""
    loaded = loaded_by("import embedding_studio.__main__")
    assert not {"torch", "mlflow", "optuna", "fastapi", "pydantic", "numpy"} & loaded


def test_only_settings_reads_the_environment() -> None:
    """No other module asks for an ES_ variable."""
    for file in modules():
        if name_of(file) != "settings":
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and "environ" in ast.unparse(node.func):
                    asked = ast.unparse(node)
                    assert "'ES_" not in asked, f"{name_of(file)}: {asked}"


def test_trees_are_deleted_in_one_place() -> None:
    """Only `remove_tree` knows that another may be deleting the same."""
    using = {name_of(file) for file in modules() if "rmtree(" in file.read_text()}
    assert using == {"deletion"}


def test_what_changes_mlflow_asks_the_guard() -> None:
    """Without it MLflow is only read; and no call is kept to be made after the guard was asked."""
    writing = 0
    for file in (PACKAGE / "tracking").glob("*.py"):
        tree = ast.parse(file.read_text())
        called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                if node.value.attr == "reading":
                    assert node.attr.startswith(("get_", "search_")), ast.unparse(node)
                elif node.value.attr == "writing":
                    assert node in called, ast.unparse(node)
                    writing += 1
    assert writing > 0


NOUNS = ["clickstream", "items", "labels", "tasks", "schedules", "models"]
NOUNS += ["keys", "workers", "users"]
ROOMS = ("", "store", "wire", "api", "client", "cli")
GAPS = {
    "wire/keys": "keys are made, listed and ended by commands that open the store",
    "client/keys": "as for wire/keys",
    "wire/workers": "what is told of workers is a part of the system's health",
    "api/workers": "as for wire/workers",
    "client/workers": "as for wire/workers",
    "cli/workers": "what they carry is told by the commands for methods",
    "cli/users": "people are erased by programs, through the client",
}
"""Why a noun is not in a room."""


@pytest.mark.parametrize("noun", NOUNS)
@pytest.mark.parametrize("room", ROOMS)
def test_a_noun_has_one_name_in_every_room(noun: str, room: str) -> None:
    """The word, its rules in the store, its JSON, its routes, calls and commands are in modules of
    one name, but for the gaps that are meant; and a gap that was closed is no longer listed."""
    place = f"{room}/{noun}" if room else noun
    assert (PACKAGE / f"{place}.py").is_file() != (place in GAPS)
