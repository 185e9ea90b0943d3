"""What is to be embedded: ids with texts, of a file or of the items that the API keeps."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.errors import InvalidInput
from embedding_studio.imports.columns import Columns, values_of
from embedding_studio.imports.contents import ITEM_ALIASES, item_values
from embedding_studio.imports.readers import Row, read_rows
from embedding_studio.items import Item
from embedding_studio.settings import Settings
from embedding_studio.wire.errors import summarize_field_errors
from embedding_studio.wire.items import ItemBody

KEPT = "items"
"""In place of a file: what the API keeps."""
MAX_FAULTS = 10
"""A file of which the first rows are all wrong is none of items."""


class Texts:
    """Ids with texts, one after the other, and what was left out.

    faults: what is wrong with rows, by their numbers, the first ten. without_text: how many items
    have nothing to read."""

    def __init__(self, items: Iterable[Item | Row], columns: Mapping[str, str]) -> None:
        self._items = items
        self._columns = columns
        self.faults: list[str] = []
        self.fault_count = 0
        self.without_text = 0

    @classmethod
    def of(
        cls,
        source: str,
        client: EmbeddingStudioClient,
        settings: Settings,
        columns: Mapping[str, str],
    ) -> "Texts":
        """Return those of a file, or of the items that the API keeps. Raises InvalidInput."""
        if source == KEPT:
            return cls(client.read_items(), columns)
        if not Path(source).is_file():
            raise InvalidInput(f"there is no file {source!r}; `--items items` takes what is kept")
        return cls(_rows_of(Path(source), settings), columns)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        columns, read = Columns(ITEM_ALIASES, self._columns), 0
        for one in self._items:
            item = one
            if isinstance(one, Row):
                try:
                    values = values_of(one)
                    found = ItemBody.model_validate(item_values(values, columns.named_by(values)))
                    item = found.to_item()
                except ValueError as error:
                    self._note(one, error, read)
                    continue
            assert isinstance(item, Item)
            read += 1
            text = item.content().get("text")
            if isinstance(text, str) and text.strip():
                yield item.object_id, text
            else:
                self.without_text += 1

    def _note(self, row: Row, error: ValueError, read: int) -> None:
        told = (
            summarize_field_errors(error.errors())
            if isinstance(error, ValidationError)
            else str(error)
        )
        self.fault_count += 1
        self.faults = [*self.faults, f"row {row.number}: {told}"][:MAX_FAULTS]
        if not read and self.fault_count == MAX_FAULTS:
            raise InvalidInput(
                f"the first rows are no items: {self.faults[0]}; name the columns by "
                "--columns item=sku,text=title"
            )


def _rows_of(file: Path, settings: Settings) -> Iterator[Row]:
    with file.open("rb") as content:
        yield from read_rows(content.read, settings)
