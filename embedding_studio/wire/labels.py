"""The JSON of labels."""

from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
)

from embedding_studio.labels import LABELS_ID, Label, LabelCounts, LabelSet
from embedding_studio.wire.clickstream import Posted, PostedId, Query, UnixSeconds
from embedding_studio.wire.fields import AsPosted

LabelsId = Annotated[str, StringConstraints(pattern=f"^{LABELS_ID.pattern}$")]


def check_words(query: str) -> str:
    """Return a query. Raises ValueError for one without words."""
    if not query.strip():
        raise ValueError("has no words")
    return query


class LabelBody(Posted):
    """How relevant an item is for a query."""

    query: Annotated[Query, AfterValidator(check_words)]
    object_id: PostedId = Field(description="as items and sessions name it")
    grade: Annotated[FiniteFloat, Field(ge=0)] = Field(
        description="of a set the highest is wholly relevant, 0 is not at all"
    )

    def to_label(self) -> Label:
        return Label(self.query, self.object_id, self.grade)

    @staticmethod
    def of(label: Label) -> "LabelBody":
        return LabelBody.model_construct(
            query=label.query, object_id=label.object_id, grade=label.grade
        )


class LabelsBody(Posted):
    """Labels for one set; one that is wrong keeps all of them out."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"labels": [{"query": "red shoes", "object_id": "shoe-7", "grade": 3}]},
            ]
        }
    )

    labels: list[AsPosted[LabelBody]]
    golden: bool | None = Field(
        None,
        description="whether each iteration scores this set, learns from none of its queries, and "
        "promotes no model that got worse on them; absent: as it is, which a new set is not",
    )


class LabelsOutcome(BaseModel):
    created: int
    updated: int = Field(description="have another grade now")
    unchanged: int


class LabelSetView(BaseModel):
    labels_id: str
    golden: bool
    created_at: UnixSeconds

    @staticmethod
    def of(found: LabelSet) -> "LabelSetView":
        return LabelSetView(
            labels_id=found.labels_id,
            golden=found.is_golden,
            created_at=found.created_at.timestamp(),
        )


class LabelSetPage(BaseModel):
    last_id: str | None = Field(description="the next page's after_id; null: no more")
    sets: list[LabelSetView]


class LabelSetReport(LabelSetView):
    """A set, with what is in it."""

    labels: int
    queries: int = Field(description="distinct, as they are split")
    relevant_queries: int = Field(description="with an item of half the highest grade or more")
    items: int = Field(description="distinct")
    highest_grade: float = Field(description="what is wholly relevant")

    @staticmethod
    def on(found: LabelSet, counts: LabelCounts) -> "LabelSetReport":
        return LabelSetReport(
            **LabelSetView.of(found).model_dump(),
            labels=counts.labels,
            queries=counts.queries,
            relevant_queries=counts.relevant_queries,
            items=counts.items,
            highest_grade=counts.highest_grade,
        )
