"""The JSON of registered models: a method's versions, and which of them is champion."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from embedding_studio.models import ModelVersion, MoveKind, RegisteredModel, Wish
from embedding_studio.tasks import Promotion
from embedding_studio.wire.fields import MAX_PAGE_OFFSET, Id, Plain

VersionNumber = Annotated[int, Field(ge=1, le=MAX_PAGE_OFFSET, strict=True)]
Reason = Annotated[str, StringConstraints(max_length=500), Plain]


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
    reason: Reason = Field("", description="for people")


class PromoteBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "reads better to our editors"}]}
    )

    reason: Reason = Field("", description="for people")


class VersionView(BaseModel):
    """A version of a method's model."""

    version: int = Field(description="as in MLflow's registry")
    is_champion: bool
    can_be_champion: bool = Field(description="whether a rollback may name it")
    created_at: datetime
    run_id: str
    task_id: str | None
    promotion: Promotion | None = Field(
        description="the verdict of the task that made it; null of an initial model, and if the "
        "task ended without one"
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
    by: str = Field(
        description="a task, an API key, a worker, or MLflow, whose alias was moved by hand"
    )
    why: str


class WishView(BaseModel):
    """A task's model that a person wants to be champion, until a worker has made it so."""

    task_id: str
    run_id: str
    by: str = Field(description="an API key")
    why: str
    at: datetime

    @classmethod
    def of(cls, wish: Wish) -> Self:
        return cls(
            task_id=wish.task_id, run_id=wish.model.run_id, by=wish.by, why=wish.why, at=wish.at
        )


class ChampionView(BaseModel):
    """What is registered of a method, newest first."""

    fine_tuning_method: str
    name: str = Field(description="in MLflow's registry: models:/<name>@champion")
    champion: int | None
    previous_version: int | None = Field(
        description="what a rollback leads to that names none; while a model is wanted, that is "
        "the champion"
    )
    wanted: WishView | None = Field(
        None, description="a model that a worker is to make champion, within seconds"
    )
    is_mirrored: bool = Field(
        description="whether MLflow's alias shows the champion already, and no model is wanted"
    )
    versions: list[VersionView]
    moves: list[MoveView]

    @classmethod
    def of(cls, model: RegisteredModel) -> Self:
        return cls(
            fine_tuning_method=model.fine_tuning_method,
            name=model.registered_name,
            champion=model.champion,
            previous_version=model.previous,
            wanted=None if model.wanted is None else WishView.of(model.wanted),
            is_mirrored=model.is_mirrored,
            versions=[VersionView.of(one, model.champion) for one in reversed(model.versions)],
            moves=[MoveView.model_validate(move) for move in reversed(model.moves)],
        )
