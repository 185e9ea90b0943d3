"""What lies beside a file: the texts of queries that it names by ids, and those of labelled
files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.archives import folder_of, table_in, unpacked
from embedding_studio.imports.columns import Columns, values_of
from embedding_studio.imports.judgements import FILE_ALIASES, JUDGEMENT_ALIASES
from embedding_studio.imports.readers import Row, read_rows
from embedding_studio.settings import Settings
from embedding_studio.wire.imports import as_text, check_file

TEXTS = (".txt", ".md")
"""What the names of files end with that are read as texts."""
_QUERY_ALIASES = {
    "id": ("query id", "qid", "id", "topic id", "topic"),
    "text": ("text", "query", "title", "question", "prompt"),
}


def rows_in(path: Path) -> Iterator[Row]:
    """Yield the rows of a file on this disk. Raises InvalidInput, with its name."""
    try:
        with path.open("rb") as file:
            yield from read_rows(file.read, Settings())
    except (InvalidInput, OSError) as error:
        raise InvalidInput(f"{path}: {error}") from None


def queries_in(path: Path) -> dict[str, str]:
    """Return the texts of queries by their ids: of a table, or of lines with an id and a text
    without a header. Raises InvalidInput."""
    fields = Columns(_QUERY_ALIASES)
    found: dict[str, str] = {}
    for row in rows_in(path):
        try:
            values = values_of(row)
            columns = fields.named_by(values)
            if not columns and len(values) == 2:  # the first line is a query, as the others are
                first, text = values
                found[first] = text
                columns = {"id": first, "text": text}
            found[str(as_text(values[columns["id"]]))] = str(as_text(values[columns["text"]]))
        except (KeyError, ValueError) as error:
            what = "has no query_id, or no text" if isinstance(error, KeyError) else str(error)
            raise InvalidInput(f"{path}: row {row.number}: {what}") from None
    return found


@contextmanager
def labelled_files(
    path: Path, files: str | None, is_kept: bool
) -> Iterator[tuple[Path, Path | None, str | None]]:
    """Yield the file with the labels, the folder with its files where that is on this disk, and
    what the names of files are below.

    files: a folder, a bucket, or an archive, which is unpacked beside itself; None where the path
    is such an archive, which has the labels too. is_kept: whether what is unpacked stays."""
    place = Path(path if files is None else files).resolve()
    target = folder_of(str(place))
    if target is None or not place.is_file():
        folder = place if files is not None and place.is_dir() else None
        yield path, folder, files if folder is None else str(folder)
        return
    with unpacked(place, is_kept) as top:
        table = table_in(top) if files is None else path
        folder = table.parent if files is None else top
        yield table, folder, str(target / folder.relative_to(top))


def with_queries(rows: Iterator[Row], queries: Mapping[str, str]) -> Iterator[Row]:
    """Yield judgements by the ids of queries with the queries' texts."""
    fields = Columns(JUDGEMENT_ALIASES)
    for row in rows:
        try:
            values = values_of(row)
            its_id = as_text(values.get(fields.named_by(values).get("query_id", "")))
            if str(its_id) not in queries:
                raise ValueError(f"names the query {its_id!r}, which is not among the queries")
            yield replace(row, content={**values, "query": queries[str(its_id)]})
        except ValueError as error:
            yield Row(row.number, fault=str(error))


def with_texts(rows: Iterator[Row], folder: Path) -> Iterator[Row]:
    """Yield labelled files that are in a folder, with what is in those that are texts."""
    fields = Columns(FILE_ALIASES)
    for row in rows:
        try:
            values = values_of(row)
            name = values.get(fields.named_by(values).get("file", ""))
            if isinstance(name, str):
                place = _place_of(folder, check_file(name))
                if name.lower().endswith(TEXTS):
                    values = {**values, "text": _text_of(place, name)}
            yield replace(row, content=values)
        except ValueError as error:
            yield Row(row.number, fault=str(error))


def _place_of(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} is a link that leads out of the folder")
    if not path.is_file():
        raise ValueError(f"{name!r} is no file in the folder")
    return path


def _text_of(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{name!r} cannot be read: {error.strerror}") from None
