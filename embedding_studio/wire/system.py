"""The JSON of ping and health."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, Field


class Pong(BaseModel):
    time: datetime


class PartStatus(StrEnum):
    OK = "ok"
    UNAVAILABLE = "unavailable"
    UNCHECKED = "unchecked"


class PartHealth(BaseModel):
    status: PartStatus
    detail: str = Field(description="what is missing and why, or what was found")


class WorkerView(BaseModel):
    worker_id: str
    methods: list[str]
    seen_at: datetime
    plugin_failures: Mapping[str, str] = Field(
        {}, description="what kept a plugin from loading, by its file; the others work"
    )
    missing_models: Mapping[str, str] = Field(
        {}, description="why the initial model of a method is not there, by the method's name"
    )


class WorkerHealth(PartHealth):
    live: list[WorkerView] = []
    methods: list[str] = []


class HealthView(BaseModel):
    status: PartStatus
    store: PartHealth
    mlflow: PartHealth
    worker: WorkerHealth
