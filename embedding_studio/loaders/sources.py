"""Where contents are, as the operator says it: an address, or a file that lists several."""

from collections.abc import Mapping, Sequence
from os.path import expandvars
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from embedding_studio.errors import ConfigurationError
from embedding_studio.imports.contents import ITEM_ALIASES
from embedding_studio.settings import Settings

ID = "{object_id}"
LISTS = (".yaml", ".yml", ".json")


def _known(field: str) -> str:
    if field not in ITEM_ALIASES:
        raise ValueError(f"{field!r} is none of {', '.join(ITEM_ALIASES)}")
    return field


class Source(BaseModel):
    """A place that has the contents of items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: Annotated[str, Field(min_length=1), AfterValidator(expandvars)] = Field(
        description="a table (a file as imports take it, or database#table); or, with {object_id} "
        "in it, an item. $NAME is taken from the environment"
    )
    columns: Mapping[Annotated[str, AfterValidator(_known)], str] = Field(
        {}, description="by the fields of imported items: those whose names are not recognised"
    )
    fields: Sequence[str] = Field((), description="columns that are kept by their names")
    meta: Sequence[str] = Field((), description="columns for methods that look for them")


_SOURCES: TypeAdapter[list[Source]] = TypeAdapter(list[Source])


def sources_of(settings: Settings) -> list[Source]:
    """Return what ES_ITEMS_FROM names, in the order in which contents are looked for. Raises
    ConfigurationError."""
    if settings.items_from is None:
        return []
    named = settings.items_from.get_secret_value()
    if ID in named or not named.endswith(LISTS):
        return [Source(at=named)]
    try:
        listed: Any = yaml.safe_load(Path(named).read_text(encoding="utf-8"))
        return _SOURCES.validate_python([listed] if isinstance(listed, dict) else listed)
    except (OSError, ValueError, yaml.YAMLError) as error:
        told = error
        if isinstance(error, ValidationError):  # without what is in it: there may be a password
            told = ValueError(
                "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            )
        raise ConfigurationError(
            f"ES_ITEMS_FROM names {named!r}, which is no list of sources: {told}"
        ) from None
