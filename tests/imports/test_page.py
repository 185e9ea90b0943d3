"""The page on imports is checked, so that it cannot rot."""

import io
import re
from pathlib import Path

import pytest

from embedding_studio.imports.formats import ALIASES, found_in
from embedding_studio.imports.readers import read_rows
from embedding_studio.settings import Settings
from embedding_studio.wire.imports import ImportFormat, RowNote

PAGE = (Path(__file__).parents[2] / "docs" / "imports.md").read_text(encoding="utf-8")
EXAMPLES = [
    (heading, example)
    for heading, section in re.findall(r"\n## `(\w+)`\n(.*?)(?=\n## |$)", PAGE, flags=re.DOTALL)
    for example in re.findall(r"```(?!sh)\w+\n(.*?)```", section, flags=re.DOTALL)
]


@pytest.mark.parametrize(("heading", "example"), EXAMPLES)
def test_the_examples_are_what_they_are_under(heading: str, example: str) -> None:
    """Each is recognised, and every row of it is right."""
    settings = Settings()
    rows = read_rows(io.BytesIO(example.encode()).read, settings)
    chosen, made = found_in(rows, "imp", settings)
    assert chosen == heading
    assert not [one for one in made if type(one) is RowNote]


def test_every_format_has_an_example() -> None:
    """And no other is told of."""
    assert {heading for heading, _ in EXAMPLES} == set(ImportFormat)


def test_the_names_of_columns_are_told() -> None:
    """Each field of a table of impressions is there with all the names that are taken for it."""
    table = PAGE[PAGE.index("recognised by the names") :].split("\n\n")[0]
    for field, names in ALIASES.items():
        assert f"`{field}`" in table
        assert ", ".join(names) in table
