"""The JSON of people whose searches are kept."""

from pydantic import BaseModel, ConfigDict, Field


class UserErased(BaseModel):
    """What erasing a person came to."""

    model_config = ConfigDict(from_attributes=True)

    sessions: int = Field(description="that this call erased, with their events")
    kept_sessions: int = Field(
        description="that are still there: tasks learn from them which have not ended"
    )
    held_by: list[str] = Field(description="these tasks; repeat the call once they have ended")
