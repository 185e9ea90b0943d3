"""The JSON of registered models: their versions, and which of them is champion."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from embedding_studio.models import (
    STAYING,
    ModelVersion,
    MoveKind,
    RegisteredModel,
    VersionState,
    Wish,
    beware_of,
)
from embedding_studio.settings import Settings
from embedding_studio.tasks import Delivery, Promotion
from embedding_studio.wire.fields import MAX_PAGE_OFFSET, Id, Plain, is_none
from embedding_studio.wire.tasks import WebhookUrl

VersionNumber = Annotated[int, Field(ge=1, le=MAX_PAGE_OFFSET, strict=True)]
Reason = Annotated[str, StringConstraints(max_length=500), Plain]
_EXPECTED = "refused if another version is champion by now"


class RollbackBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"version": 2, "expected_champion": 3, "reason": "fewer orders since Monday"}
            ]
        },
    )

    version: VersionNumber | None = Field(
        None, description="to be champion; absent: the one whose place the present one took"
    )
    expected_champion: VersionNumber | None = Field(None, description=_EXPECTED)
    reason: Reason = Field("", description="for people")


class PromoteBody(BaseModel):
    """Exactly one of version and task_id."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"version": 4, "reason": "reads better to our editors"}]},
    )

    version: VersionNumber | None = Field(None, description="to be champion")
    task_id: Id | None = Field(None, description="whose model is to be champion")
    expected_champion: VersionNumber | None = Field(None, description=_EXPECTED)
    reason: Reason = Field("", description="for people")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.version is None) == (self.task_id is None):
            raise ValueError("name a version or a task_id, not both and not none")
        return self


class VersionView(BaseModel):
    """A version of a model. What is not known of it is absent."""

    version: int = Field(description="as in MLflow's registry")
    state: VersionState = Field(
        description="champion; former: it was champion; refused: its verdict was against it; "
        "candidate: a person is to decide, for its task's `promote` is never; removed: its files "
        "are gone"
    )
    is_champion: bool
    can_be_champion: bool = Field(
        description="whether it may be promoted, for its files are there and it is of this project"
    )
    created_at: datetime
    run_id: str
    task_id: str | None
    promotion: Promotion | None = Field(
        description="the verdict of the task that made it; null of an initial model, and if the "
        "task ended without one"
    )
    removed_at: datetime | None = Field(description="when its files were removed")
    fine_tuning_method: str
    method_version: str | None = Field(None, exclude_if=is_none)
    parent: str | None = Field(
        None, exclude_if=is_none, description="what it was trained from: a version, `name/3`"
    )
    batch_ids: list[str] | None = Field(
        None, exclude_if=is_none, description="it learnt from; of a time range the last"
    )
    labels_id: str | None = Field(None, exclude_if=is_none, description="it learnt from, too")
    judge_labels_id: str | None = Field(None, exclude_if=is_none, description="that judged it")
    parameters: Mapping[str, int | float | bool | str | None] | None = Field(
        None, exclude_if=is_none, description="the hyperparameter set, with its seed"
    )
    base_model: str | None = Field(None, exclude_if=is_none, description="by its card")
    license: str | None = Field(
        None, exclude_if=is_none, description="of the base model, by its card"
    )
    sha256: str | None = Field(
        None, exclude_if=is_none, description="of the list of its files with their hashes"
    )
    items_sha256: str | None = Field(
        None,
        exclude_if=is_none,
        description="of the files that give items their vectors: versions with the same give items "
        "the same vectors",
    )
    size_bytes: int | None = Field(None, exclude_if=is_none)
    dimensions: int | None = Field(None, exclude_if=is_none, description="how long its vectors are")
    prompts: Mapping[str, str] | None = Field(
        None, exclude_if=is_none, description="what comes before a text, by the prompt's name"
    )
    warnings: list[str] = Field([], description="what speaks against using it: of its licence, say")

    @classmethod
    def of(cls, version: ModelVersion, model: RegisteredModel, project: str) -> Self:
        """Return it as a project sees it."""
        is_champion = version.number == model.champion
        facts, training = version.model.facts, version.training
        known = asdict(facts) if facts else {}
        known |= asdict(training) if training else {}
        return cls(
            version=version.number,
            state=model.state_of(version),
            is_champion=is_champion,
            can_be_champion=version.removed_at is None
            and not is_champion
            and project == model.project,
            created_at=version.created_at,
            run_id=version.model.run_id,
            task_id=version.task_id,
            promotion=version.promotion,
            removed_at=version.removed_at,
            fine_tuning_method=model.fine_tuning_method,
            warnings=[] if facts is None else beware_of(facts),
            **known,
        )


class MoveView(BaseModel):
    """One change of the champion, or what else became of the model."""

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


def _summary_of(model: RegisteredModel, project: str) -> dict[str, Any]:
    moves = [move for move in model.moves if move.kind not in STAYING]
    is_own = project == model.project
    return {
        "name": model.name_in(project),
        "owner": None if is_own else model.project,
        "shared_with": model.shared_with,
        "fine_tuning_method": model.fine_tuning_method,
        "registered_name": model.registered_name,
        "champion": model.champion,
        "previous_version": model.previous if is_own else None,
        "wanted": None if model.wanted is None else WishView.of(model.wanted),
        "is_mirrored": model.is_mirrored,
        "version_count": len(model.kept_numbers),
        "changed_at": moves[-1].at if moves else None,
    }


class WebhookBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"url": "https://search.example/reindex"}]}
    )

    url: WebhookUrl | None = Field(description="is told which version is champion; null: nobody is")


class ModelSummary(BaseModel):
    """A registered model as it is listed."""

    name: str = Field(description="`owner:name` of one that another project shares")
    owner: str | None = Field(
        None, exclude_if=is_none, description="the project that shares it with this one"
    )
    shared_with: list[str] = Field([], description="the projects that may read it, too")
    fine_tuning_method: str = Field(description="by which its versions are made")
    registered_name: str = Field(description="in MLflow's registry: models:/<that>@champion")
    champion: int | None
    previous_version: int | None = Field(
        description="what a rollback leads to that names none; while a model is wanted, that is "
        "the champion"
    )
    wanted: WishView | None = Field(
        None, description="a model that a worker is to make champion, within seconds"
    )
    is_mirrored: bool = Field(
        description="whether MLflow shows what is here: the champion, and no deleted version"
    )
    version_count: int = Field(description="of those whose files are there")
    changed_at: datetime | None = Field(description="when its champion was last moved")

    @classmethod
    def of(cls, model: RegisteredModel, project: str) -> Self:
        """Return it as a project sees it."""
        return cls(**_summary_of(model, project))


class ModelView(ModelSummary):
    """A registered model with its versions and what became of its champion, newest first."""

    versions: list[VersionView]
    moves: list[MoveView]
    webhook_url: str | None = Field(
        None, exclude_if=is_none, description="is told which version is champion"
    )
    delivery: Delivery | None = Field(
        None, exclude_if=is_none, description="how telling the webhook goes"
    )
    delivery_due_at: datetime | None = Field(
        None, exclude_if=is_none, description="when the webhook is told, again if need be"
    )

    @classmethod
    def of(cls, model: RegisteredModel, project: str) -> Self:
        newest = sorted(model.versions, key=lambda one: one.number, reverse=True)
        return cls(
            **_summary_of(model, project),
            versions=[VersionView.of(one, model, project) for one in newest],
            moves=[MoveView.model_validate(move) for move in reversed(model.moves)],
            webhook_url=model.webhook_url,
            delivery=model.delivery,
            delivery_due_at=model.delivery_due_at,
        )


class Reindex(BaseModel):
    """Whether an index by the version that the address heard of last is to be made anew."""

    needed: bool
    why: str


class ChampionData(BaseModel):
    project: str
    name: str
    registered_name: str
    version: VersionView
    former_version: int | None
    move: MoveView | None = Field(description="what made it champion")
    download_url: str | None = Field(description="a ZIP; null: ES_API_PUBLIC_URL is not set")
    reindex: Reindex


class ChampionChanged(BaseModel):
    """What a model's webhook is told."""

    type: Literal["champion.changed"] = "champion.changed"
    timestamp: datetime
    data: ChampionData

    @classmethod
    def of(cls, model: RegisteredModel, settings: Settings) -> Self:
        """Raises NotFound where there is no champion."""
        version = model.version(model.champion)
        move = next((move for move in reversed(model.moves) if move.kind not in STAYING), None)
        number = move.from_version if move else None
        why = model.why_reindex()
        url = settings.api_public_url and (
            f"{settings.api_public_url.rstrip('/')}/api/v1/models/{quote(model.name, safe='')}"
            f"/versions/{version.number}/download"
        )
        return cls(
            timestamp=move.at if move else version.created_at,
            data=ChampionData(
                project=model.project,
                name=model.name,
                registered_name=model.registered_name,
                version=VersionView.of(version, model, model.project),
                former_version=number,
                move=None if move is None else MoveView.model_validate(move),
                download_url=url,
                reindex=Reindex(
                    needed=why is not None,
                    why=why or f"items have the vectors that version {model.heard} gave them",
                ),
            ),
        )

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()
