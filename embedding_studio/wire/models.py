"""The JSON of registered models: a method's versions, and which of them is champion."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from embedding_studio.models import ModelVersion, MoveKind, RegisteredModel
from embedding_studio.tasks import Promotion
from embedding_studio.wire.fields import MAX_PAGE_OFFSET, Id, Plain

VersionNumber = Annotated[int, Field(ge=1, le=MAX_PAGE_OFFSET, strict=True)]


class RollbackBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "fine_tuning_method": "Default Fine Tuning Method",
                    "version": 2,
                    "expected_champion": 3,
                    "reason": "fewer orders since Monday",
                }
            ]
        },
    )

    fine_tuning_method: Id = Field(description="the `meta.name` of a plugin")
    version: VersionNumber | None = Field(
        None, description="to be champion; absent: the one whose place the present one took"
    )
    expected_champion: VersionNumber | None = Field(
        None, description="refused if another version is champion by now"
    )
    reason: Annotated[str, StringConstraints(max_length=500), Plain] = Field(
        "", description="for people"
    )


class VersionView(BaseModel):
    """A version of a method's model."""

    version: int = Field(description="as in MLflow's registry")
    is_champion: bool
    can_be_champion: bool = Field(description="whether a rollback may name it")
    created_at: datetime
    run_id: str
    task_id: str | None
    promotion: Promotion | None = Field(
        description="the verdict of the task that made it, null of an initial model"
    )
    removed_at: datetime | None = Field(description="when its files were removed")

    @classmethod
    def of(cls, version: ModelVersion, champion: int | None) -> Self:
        is_champion = version.number == champion
        return cls(
            version=version.number,
            is_champion=is_champion,
            can_be_champion=version.removed_at is None and not is_champion,
            created_at=version.created_at,
            run_id=version.model.run_id,
            task_id=version.task_id,
            promotion=version.promotion,
            removed_at=version.removed_at,
        )


class MoveView(BaseModel):
    """One change of the champion."""

    model_config = ConfigDict(from_attributes=True)

    kind: MoveKind
    at: datetime
    from_version: int | None
    to_version: int
    by: str = Field(description="a task, an API key, or MLflow, whose alias was moved by hand")
    why: str


class ChampionView(BaseModel):
    """What is registered of a method, newest first."""

    fine_tuning_method: str
    name: str = Field(description="in MLflow's registry: models:/<name>@champion")
    champion: int | None
    previous_version: int | None = Field(description="what a rollback leads to that names none")
    is_mirrored: bool = Field(description="whether MLflow's alias shows the champion already")
    versions: list[VersionView]
    moves: list[MoveView]

    @classmethod
    def of(cls, model: RegisteredModel) -> Self:
        return cls(
            fine_tuning_method=model.method,
            name=model.name,
            champion=model.champion,
            previous_version=model.version(model.champion).previous if model.champion else None,
            is_mirrored=model.is_mirrored,
            versions=[VersionView.of(one, model.champion) for one in reversed(model.versions)],
            moves=[MoveView.model_validate(move) for move in reversed(model.moves)],
        )
