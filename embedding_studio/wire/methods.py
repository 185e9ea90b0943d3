"""The JSON of fine-tuning methods."""

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, Field

from embedding_studio.workers import WorkerRecord


class MethodView(BaseModel):
    """A method that a task may name, as the workers say that carry it."""

    name: str
    workers: int = Field(description="how many of those that live carry it")
    takes_labels: bool
    can_start: bool = Field(description="whether its initial model is there, as far as is known")

    @classmethod
    def of(cls, name: str, workers: Sequence[WorkerRecord]) -> Self:
        """Return one, as told by the workers that carry it."""
        return cls(
            name=name,
            workers=len(workers),
            takes_labels=any(name not in one.without_labels for one in workers),
            can_start=any(name not in one.missing_models for one in workers),
        )


class MethodList(BaseModel):
    """The methods of the workers that live."""

    methods: list[MethodView]
    failed_plugins: list[str] = Field(
        description="what did not load, by file or entry point; health says why"
    )
