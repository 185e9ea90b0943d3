"""What a person sees who follows a task's link into MLflow, in a real browser.

`--screenshots docs/images` runs the linear adapter on the demo's searches and keeps the pictures
that the README shows.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from embedding_studio.settings import Settings
from embedding_studio.tasks import FineTuningTask
from embedding_studio.tracking import story
from embedding_studio.tracking.reader import experiment_url
from tests.e2e.icons import search_for_icons
from tests.iterations import open_bench
from tests.servers import MlflowServer
from tests.training.tiny import PACKAGED_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.draws, pytest.mark.timeout(900)]

PLUGINS = Path(__file__).parents[2] / "plugins"
SECONDS = 60


@dataclass
class Look:
    """A page of MLflow's UI. folder: where pictures are kept; None: nowhere."""

    page: Page
    folder: Path | None

    def keep(self, name: str) -> None:
        if self.folder is None:
            return
        self.page.wait_for_timeout(3000)  # pages move when their parts come
        picture = Image.open(BytesIO(self.page.screenshot()))
        self.folder.mkdir(parents=True, exist_ok=True)
        picture.quantize(64).save(self.folder / f"{name}.png", optimize=True)

    def shows(self, what: Locator | str) -> None:
        found = self.page.get_by_text(what).first if isinstance(what, str) else what.first
        expect(found).to_be_visible(timeout=SECONDS * 1000)


@pytest.fixture
def task(
    settings: Settings, screenshots: Path | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FineTuningTask]:
    """A task that is done, on real data where pictures are to be kept."""
    if screenshots is not None:
        monkeypatch.setenv("ES_INITIAL_MODEL", str(PACKAGED_MODEL))
        settings = settings.replaced(plugins_folder=PLUGINS)
    bench = open_bench(settings)
    if screenshots is None:
        yield bench.run_task("Climbing", trials=12)
    else:
        search_for_icons(bench, 20_000)
        task = bench.post_task("Linear adapter", trials=12)
        assert bench.worker.work_once()
        yield bench.house.store.tasks.get(task.id)
    bench.house.executor.close()
    bench.house.store.close()


@pytest.fixture
def look(browser: Browser, settings: Settings, screenshots: Path | None) -> Iterator[Look]:
    """A browser that has not been used, and MLflow's UI over the task's runs."""
    server = MlflowServer(settings.data_folder)
    with browser.new_context(
        viewport={"width": 1440, "height": 900}, base_url=server.url
    ) as context:
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        yield Look(page, screenshots)
    server.close()


def test_mlflow_tells_the_story(task: FineTuningTask, settings: Settings, look: Look) -> None:
    """From a task's link: the verdict, the runs with the best one first, the best run with its
    curves, and the registry with what a version is."""
    page, promotion = look.page, task.promotion
    assert promotion is not None
    assert task.experiment_id is not None
    link = experiment_url("", task.experiment_id)
    page.goto(link)
    page.get_by_role("button", name="Close").first.click()  # MLflow's assistant
    verdict = page.get_by_text(story.verdict(promotion)).first
    look.shows(verdict)
    names = page.locator("[role=row] a", has_text=re.compile(r"·|baseline|pruned|failed"))
    look.shows(names)
    assert re.fullmatch(r"\d+ · [\d.]+ best", names.first.inner_text())
    assert any(re.fullmatch(r"baseline [\d.]+", name) for name in names.all_inner_texts())
    look.shows(page.get_by_role("columnheader", name=promotion.metric_name))
    note = verdict.locator("xpath=ancestor::div[.//button][1]")
    note.get_by_role("button").last.click()
    look.shows("next step")
    look.keep("mlflow-runs")

    names.first.click()
    look.shows(page.get_by_role("heading", name="best"))
    page.get_by_role("tab", name="Model metrics").click()
    charts = page.get_by_role("heading", level=4)
    look.shows(charts.filter(has_text=promotion.metric_name))
    shown = charts.all_inner_texts()
    assert not [name for name in shown if "last" in name or "seconds" in name]
    before = shown[: shown.index(promotion.metric_name)]
    assert not [name for name in before if name.startswith("test_")]  # bars come after the curves
    # a curve that is level has no height, which a browser calls hidden
    expect(page.locator(".scatterlayer path").first).to_be_attached(timeout=SECONDS * 1000)
    look.keep("mlflow-best-run")

    page.goto(link)
    page.get_by_role("link", name="Model registry").click()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()  # what is new there
    page.get_by_role("link", name=task.fine_tuning_method, exact=True).first.click()
    look.shows("champion")
    page.get_by_role("link", name=re.compile(r"^Version \d")).first.click()
    look.shows("Inputs (1)" if look.folder else "Schema")  # toys have none
    look.keep("mlflow-version")
