"""The README's tables and its plugin are checked, so they cannot rot."""

import re
from pathlib import Path

import pytest

from embedding_studio.settings import Settings
from embedding_studio.tasks import TaskStatus
from tests.iterations import Bench, open_bench

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def settings_table() -> str:
    """Return the rows that the README must have: name, default, description of every setting."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        description = " ".join((field.description or "").split())
        rows.append(f"| `ES_{name.upper()}` | {default} | {description} |")
    return "\n".join(rows)


def test_the_settings_table_is_the_settings_class() -> None:
    """Every setting is in the README with its default and its description, and no other."""
    rows = [line for line in README.splitlines() if line.startswith("| `ES_")]
    assert "\n".join(rows) == settings_table()


def test_the_page_on_security_names_every_limit() -> None:
    """Each setting that bounds or allows something is in docs/security.md, and no other name is."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bES_[A-Z_]+", page))
    settings = {f"ES_{name.upper()}" for name in Settings.model_fields}
    limits = {name for name in settings if name.startswith(("ES_MAX_", "ES_ALLOW"))}
    assert limits <= named <= settings


def test_the_routes_in_the_readme_exist(bench: Bench) -> None:
    """Every route the README names is one the API has, with that method."""
    from embedding_studio.api.app import create_app

    paths = create_app(bench.house.store, bench.house.settings).openapi()["paths"]
    routes = {(verb.upper(), path) for path, verbs in paths.items() for verb in verbs}
    named = re.findall(r"`(GET|POST|PUT) (/[^`?]*)[^`]*`", README)
    assert len(named) >= 14
    for verb, path in named:
        found = {p.replace("{task_id}", "{id}") for v, p in routes if v == verb}
        assert f"/api/v1{path}" in found, f"{verb} {path}"


def test_the_readmes_plugin_works(settings: Settings, tmp_path: Path) -> None:
    """The plugin of the tutorial, saved as it stands, runs a whole iteration."""
    (code,) = re.findall(r"```python\n(\"\"\"Learn how.*?)```", README, flags=re.DOTALL)
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "score_scale.py").write_text(code)
    bench = open_bench(settings.model_copy(update={"plugins_folder": plugins}))
    task = bench.run_task("Score scale")
    assert task.error is None
    assert task.status is TaskStatus.DONE
    assert task.promotion is not None
    assert task.promotion.promoted
    bench.house.store.close()


@pytest.mark.parametrize("target", ["demo", "test", "up"])
def test_the_commands_in_the_readme_exist(target: str) -> None:
    """The make targets that the README names are in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
