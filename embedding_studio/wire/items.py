"""The JSON of items."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from embedding_studio.items import Item, PutStatus
from embedding_studio.wire.clickstream import Posted, PostedId, Text
from embedding_studio.wire.fields import AsPosted, Meta, check_meta, is_none

Address = Annotated[Text, AfterValidator(str.strip)]


class ItemBody(Posted):
    """Something that a search can show."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"object_id": "shoe-7", "text": "Runner, red"}]}
    )

    object_id: PostedId = Field(description="as sessions name it")
    text: Text | None = Field(None, description="what there is to read of it")
    fields: dict[str, Text] | None = Field(
        None, description="in place of a text: the values are read, one after the other"
    )
    image: Address | None = Field(None, description="the image's address")
    url: Address | None = None
    meta: Meta | None = Field(None, description="whatever else a method may want of it")

    @model_validator(mode="after")
    def _check_content(self, info: ValidationInfo) -> Self:
        if info.context is None:
            return self
        content = self.to_item().content()
        if not content:
            raise ValueError("has no content: give a text, fields, an image, a url or meta")
        check_meta(content, info.context)
        return self

    def to_item(self) -> Item:
        given = {name: getattr(self, name) for name in Item.__dataclass_fields__}
        return Item(**{name: value for name, value in given.items() if value})

    @staticmethod
    def of(item: Item) -> "ItemBody":
        names = Item.__dataclass_fields__
        given: dict[str, Any] = {name: getattr(item, name) or None for name in names}
        return ItemBody.model_construct(**given)


class ItemsBody(Posted):
    """Many items at once; each is judged alone, so one bad item costs only itself."""

    items: list[AsPosted[ItemBody]]


class ItemOutcome(BaseModel):
    object_id: str | None = Field(description="null when the item's own id is invalid")
    status: PutStatus
    error: str | None = Field(None, exclude_if=is_none)


class ItemOutcomes(BaseModel):
    items: list[ItemOutcome] = Field(description="one per item, in the order given")


class ItemPage(BaseModel):
    last_id: str | None = Field(description="the next page's after_id; null: no more")
    item_count: int = Field(description="of all there are")
    items: list[ItemBody]


class ItemsDeleted(BaseModel):
    deleted: int = Field(description="how many of them there were")
