"""What the README and the pages say of settings, routes, commands and files is checked."""

import re
from pathlib import Path

import pytest

from embedding_studio.settings import Settings
from embedding_studio.tasks import TaskStatus
from tests.iterations import Bench, open_bench

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def settings_table() -> str:
    """Return the rows that the page must have: name, default, description of every setting."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        description = " ".join((field.description or "").split())
        rows.append(f"| `ES_{name.upper()}` | {default} | {description} |")
    return "\n".join(rows)


def test_the_settings_table_is_the_settings_class() -> None:
    """Every setting is in docs/settings.md with its default and its description, and no other."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `ES_")]
    assert "\n".join(rows) == settings_table()


def test_the_page_on_security_names_every_limit() -> None:
    """Each setting that bounds or allows something is in docs/security.md, and no other name is."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bES_[A-Z_]+", page))
    settings = {f"ES_{name.upper()}" for name in Settings.model_fields}
    limits = {name for name in settings if name.startswith(("ES_MAX_", "ES_ALLOW"))}
    assert limits <= named <= settings


def test_the_routes_that_are_documented_exist(bench: Bench) -> None:
    """Every route docs/api.md names is one the API has, with that method."""
    from embedding_studio.api.app import create_app

    paths = create_app(bench.house.store, bench.house.settings).openapi()["paths"]
    routes = {(verb.upper(), path) for path, verbs in paths.items() for verb in verbs}
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"`(GET|POST|PUT) (/[^`?]*)[^`]*`", page)
    assert len(named) >= 14
    for verb, path in named:
        found = {p.replace("{task_id}", "{id}") for v, p in routes if v == verb}
        assert f"/api/v1{path}" in found, f"{verb} {path}"


def test_the_smallest_plugin_works(settings: Settings, tmp_path: Path) -> None:
    """The plugin of docs/plugins.md, saved as it stands, runs a whole iteration."""
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(\"\"\"Learn how.*?)```", page, flags=re.DOTALL)
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


def test_links_between_pages_lead_somewhere() -> None:
    """Each link in the README and in docs/ names a file that is there, and a heading in it."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in target or target.startswith("mailto:"):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors_of(file), f"{page.name}: {target}"


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
