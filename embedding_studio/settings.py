"""Every setting, once, and where it comes from. Nothing else reads the environment."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from embedding_studio.clock import MAX_LEASE_SECONDS, parse_duration
from embedding_studio.errors import ConfigurationError, InvalidInput

OBJECT_STORES = ("s3", "gs", "az")
"""What addresses of objects begin with, before `://bucket/`."""

DEFAULT_PROFILE = "default"
_NOT_IN_PROFILES = {"profile", "profiles_file"}


def _parts(text: str | None) -> list[str]:
    return [part.strip().rstrip("/") or "/" for part in (text or "").split(",") if part.strip()]


class Settings(BaseSettings):
    """Read from environment variables with the prefix ES_; docs/settings.md lists them all.

    What the environment leaves open comes from a profile, a table in a file; one that is named
    here, not by ES_PROFILE, wins over the environment."""

    model_config = SettingsConfigDict(env_prefix="ES_", frozen=True, use_attribute_docstrings=True)

    data_folder: Path = Path("mlruns")
    """where everything local is kept"""
    store_url: SecretStr | None = None
    """tasks and clickstream: mongodb://host/database, or sqlite:///path (default: store.db in the
    data folder)"""
    mlflow_tracking_uri: str | None = None
    """MLflow's server, http://host:port, or its database (default: sqlite, mlflow.db in the data
    folder)"""
    mlflow_public_url: str = "http://127.0.0.1:5001"
    """where people open the MLflow UI; used in links"""
    plugins_folder: Path = Path("plugins")
    """one file per fine-tuning method"""
    plugin_import_seconds: float = Field(120.0, gt=0)
    """a plugin whose import takes longer is left out"""
    executor: str | None = None
    """where trials run: process:N (N at a time, each in a process of its own), ray:auto or
    ray://host:port (a Ray cluster), or inline (in the worker, for debugging) (default: a process
    per GPU, else per core, at most four)"""
    initial_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """what the default method starts from: a folder or a model hub's name"""
    initial_image_model: str = "sentence-transformers/clip-ViT-B-32"
    """what the image method starts from: a folder or a model hub's name"""
    model_dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """the type that the weights of encoders are saved in; stored: the type that the initial model
    has"""
    activations_mb: int = Field(4096, ge=0)
    """how much of the disk an iteration may use to keep what frozen layers compute; 0 to compute it
    anew each time"""
    api_host: str = "127.0.0.1"
    """address the API binds to"""
    api_port: int = Field(5000, ge=0, le=65535)
    """port of the API"""
    allow_open: bool = False
    """whether an API that anyone can reach may answer while there are no API keys"""
    cors_origins: str | None = None
    """web pages that may call the API from a browser, by their origins:
    https://shop.example,https://www.shop.example; * for any; by default none"""
    api_url: str | None = None
    """where commands find the API (default: http://, the API's host and its port)"""
    api_key: SecretStr | None = None
    """what commands show to the API, once there are keys"""
    profile: str | None = None
    """the profile that gives what is not set otherwise (default: `default`, where there is one)"""
    profiles_file: Path = Path("~/.config/embedding-studio/profiles.toml")
    """profiles: tables of settings by name, in TOML"""
    mlflow_port: int = Field(5001, ge=0, le=65535)
    """port of the MLflow UI under `up`"""
    serve_port: int = Field(5002, ge=0, le=65535)
    """port of `serve`, which gives vectors; its address is that of the API"""
    serve_models: int = Field(4, ge=1)
    """how many models `serve` has in memory at most; while a champion is replaced one more"""
    serve_queue: int = Field(8192, ge=1)
    """how many texts wait in `serve` at most; what comes then is told to come again"""
    max_event_age_seconds: float = Field(12 * 3600, gt=0)
    """sessions and events older than this are refused"""
    max_event_ahead_seconds: float = Field(5 * 60, ge=0)
    """sessions and events further in the future are refused"""
    max_page_size: int = Field(1000, gt=0)
    """most tasks or sessions one page returns"""
    max_sessions_per_request: int = Field(1000, gt=0)
    """most sessions in one bulk request"""
    max_results_per_session: int = Field(1000, gt=0)
    """most results that one session may show"""
    max_events_per_session: int = Field(1000, gt=0)
    """most events that one post may add to a session"""
    max_early_events: int = Field(10_000, ge=0)
    """most events of a project that wait for their session, each for as long as sessions may be
    old; 0: none wait"""
    max_project_sessions: int = Field(5_000_000, gt=0)
    """most sessions of a project; deleted batches are room again"""
    max_project_mb: int = Field(10_240, gt=0)
    """most megabytes of a project's sessions, events, items, labels and tasks, as JSON; a database
    takes more for them"""
    max_query_chars: int = Field(4096, gt=0)
    """longest query, in characters"""
    max_id_chars: int = Field(256, gt=0)
    """longest id of a session, item, event or user, and event type"""
    max_meta_bytes: int = Field(32 * 1024, gt=0)
    """largest meta or metadata, in bytes of its JSON"""
    max_meta_depth: int = Field(16, gt=0, le=64)
    """how deep a meta or metadata may be nested; MongoDB takes 100"""
    ignore_unknown_fields: bool = False
    """whether fields that are not known are left out of what is posted to the clickstream, rather
    than refused"""
    max_body_mb: int = Field(16, gt=0)
    """largest body of a request; each MB may have 65,536 values or commas"""
    max_import_mb: int = Field(2048, gt=0)
    """largest parquet file of an import, which lies on the disk while it is read; other files may
    be of any size"""
    allowed_roots: str | None = None
    """folders, and buckets or parts of them, whose files clients may name as images, or have
    imported: /data/images,s3://bucket/images; by default none"""
    items_from: SecretStr | None = None
    """where contents are that are not kept as items: a table (/data/items.parquet,
    postgresql://host/database#table), an address ({object_id} in it), or a YAML file that lists
    several; docs/items.md"""
    items_cache_mb: int = Field(1024, ge=0)
    """how much of the disk may be used to keep what was loaded from there"""
    max_missing_items: float = Field(0.2, ge=0, le=1)
    """of the items that are to be loaded from there, the share that may be missing; with more, the
    task is an error before it takes its batch"""
    max_item_mb: int = Field(32, gt=0)
    """largest file of an item; what is larger is left out"""
    max_item_seconds: float = Field(30.0, gt=0)
    """a file of an item that takes longer to fetch is left out"""
    max_image_megapixels: int = Field(50, gt=0, le=178)
    """largest image, in millions of pixels; what is larger is left out. Decoding takes about 30 MB
    of memory a million"""
    max_connections: int = Field(1000, gt=0)
    """most connections to the API; a new one takes the place of the one that waits longest for its
    client"""
    request_seconds: float = Field(60.0, gt=0)
    """how long a request may take to come, body included, and a client to take what he was sent;
    then the connection is closed"""
    max_pending_tasks: int = Field(100, gt=0)
    """most tasks of a project that wait for a worker"""
    max_schedules: int = Field(100, gt=0)
    """most schedules of a project"""
    max_trials_per_task: int = Field(1000, gt=0)
    """most hyperparameter sets that a task may ask for"""
    rate_limit: str = "6000/minute"
    """most requests of an API key, or of an address where no key counts: a number, a slash, and
    second, minute, hour or day; empty for no limit"""
    poll_seconds: float = Field(1.0, gt=0)
    """how often a worker looks for a task"""
    lease_seconds: float = Field(60.0, gt=0, le=MAX_LEASE_SECONDS)
    """a worker silent for this long loses its task; at most an hour"""
    max_expired_leases: int = Field(3, ge=1)
    """after this many dead workers a task is an error"""
    stop_grace_seconds: float = Field(300.0, ge=0)
    """a trial that goes on for this long after it was asked to end is killed"""
    max_job_minutes: float = Field(120.0, gt=0)
    """a step of a task that is no trial (preparing the data, scoring a model) is killed after this,
    and the task is an error"""
    keep_iterations: int = Field(1, ge=1)
    """how many of a model's iterations stay, the champions' apart"""
    keep_models: int = Field(1, ge=1)
    """how many of those keep their model files, the champions' apart"""
    keep_champions: int = Field(2, ge=0)
    """how many champions before the present one stay to be rolled back to"""
    keep_batches: int = Field(0, ge=0)
    """how many of a project's released batches stay; 0: all of them"""
    keep_sessions: str | None = None
    """how long sessions stay, from when they came: 400d, say; none goes by itself when absent"""
    sweep_minutes: float = Field(60.0, ge=0)
    """how often a worker removes what crashes left; 0: never"""
    allow_private_addresses: bool = False
    """whether webhooks, images and files to import may be at addresses of private networks"""
    webhook_secret: SecretStr | None = None
    """signs webhooks: whsec_ and base64; without it tasks name none"""
    api_public_url: str | None = None
    """where receivers of webhooks reach the API; used in links. Its host is a name that is answered
    without keys, too"""
    warm_start_trials: int = Field(2, ge=0)
    """how many of the previous iteration's best sets are tried first"""
    learn_from_previous: bool = False
    """whether the sampler also learns from the previous iteration's trials"""
    seed: int = Field(0, ge=0)
    """of the search, the trials and the promotion gate"""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return what gives settings, the first that has one wins. Raises ConfigurationError for a
        profile that is not there, or has what is no setting."""
        chosen = init_settings().get("profile")
        environment = env_settings()
        name, file = chosen or environment.get("profile"), environment.get("profiles_file")
        profile = InitSettingsSource(cls, _profile(name, _file_of(file)))
        if chosen:
            return init_settings, profile, env_settings
        return init_settings, env_settings, profile

    @property
    def api_address(self) -> str:
        """Where the API is found, with the default filled in."""
        return self.api_url or f"http://{self.api_host}:{self.api_port}"

    @cached_property
    def resolved_store_url(self) -> str:
        """The store's URL with the default filled in."""
        if self.store_url is not None:
            return self.store_url.get_secret_value()
        return f"sqlite:///{self.data_folder.absolute() / 'store.db'}"

    @cached_property
    def resolved_tracking_uri(self) -> str:
        """MLflow's tracking URI with the default filled in."""
        if self.mlflow_tracking_uri is not None:
            return self.mlflow_tracking_uri
        return f"sqlite:///{self.data_folder.absolute() / 'mlflow.db'}"

    @field_validator("allowed_roots")
    @classmethod
    def _check_roots(cls, value: str | None) -> str | None:
        for root in _parts(value):
            store, has_store, path = root.partition("://")
            if not (Path(root).is_absolute() or (store in OBJECT_STORES and has_store and path)):
                raise ValueError(
                    f"{root!r} is no absolute path, and no {'://, '.join(OBJECT_STORES)}:// bucket"
                )
        return value

    @field_validator("keep_sessions")
    @classmethod
    def _check_lifetime(cls, value: str | None) -> str | None:
        try:
            is_none = value is not None and not parse_duration(value)
        except InvalidInput as error:
            raise ValueError(str(error)) from None
        if is_none:
            raise ValueError("sessions that are kept for no time are no use")
        return value

    @property
    def session_lifetime(self) -> timedelta | None:
        """How long sessions stay; None: as long as their batches."""
        return None if self.keep_sessions is None else parse_duration(self.keep_sessions)

    def allows_folder(self, place: str) -> bool:
        """Return whether a local folder lies below an allowed root, links followed."""
        folders = [Path(root).resolve() for root in self.roots if Path(root).is_absolute()]
        return any(Path(place).resolve().is_relative_to(folder) for folder in folders)

    @property
    def roots(self) -> list[str]:
        """The allowed roots, without a slash at the end."""
        return _parts(self.allowed_roots)

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine can reach the API."""
        return is_loopback(self.api_host)

    def replaced(self, **changes: Any) -> "Settings":
        """Return these settings with some changed."""
        return Settings(**{**self._given(), **changes})

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}

    def as_environment(self) -> dict[str, str]:
        """Return the variables that give another process these settings."""
        return {
            f"ES_{name.upper()}": value.get_secret_value()
            if isinstance(value, SecretStr)
            else str(value)
            for name, value in self._given().items()
            if value is not None
        }

    @property
    def artifacts_folder(self) -> Path:
        """Where model files lie when MLflow is a local database."""
        return self.data_folder.absolute() / "artifacts"

    @property
    def work_folder(self) -> Path:
        """Scratch space of running iterations."""
        return self.data_folder.absolute() / "work"


def is_loopback(host: str) -> bool:
    """Return whether a host's name, or address, is this machine's own, whoever asks."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def origins(**options: Any) -> Mapping[str, str]:
    """Return where each setting of `Settings(**options)` comes from, by its name: "option",
    "environment", "profile ..." with its file, or "default"."""
    variables = {name.upper(): value for name, value in os.environ.items()}
    environment = {name for name in Settings.model_fields if f"ES_{name.upper()}" in variables}
    chosen, file = options.get("profile"), _file_of(variables.get("ES_PROFILES_FILE"))
    name = chosen or variables.get("ES_PROFILE")
    of_profile = f"profile {name or DEFAULT_PROFILE} in {file}", _profile(name, file)
    places = [("option", options), ("environment", environment)]
    places.insert(1 if chosen else 2, of_profile)
    return {
        field: next((place for place, given in places if field in given), "default")
        for field in Settings.model_fields
    }


def _file_of(named: str | None) -> Path:
    return Path(named or Settings.model_fields["profiles_file"].default).expanduser()


def _profile(name: str | None, file: Path) -> dict[str, Any]:
    """Return what a profile sets; nothing for None where there is no default one. Raises
    ConfigurationError."""
    try:
        profiles = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        profiles = {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read as TOML: {error}") from error
    shown = name or DEFAULT_PROFILE
    found = profiles.get(shown, {} if name is None else None)
    if not isinstance(found, dict):
        there = ", ".join(sorted(profiles)) or "none"
        raise ConfigurationError(f"{file} has no profile {shown!r}; there is {there}")
    for given in found:
        if given not in Settings.model_fields or given in _NOT_IN_PROFILES:
            near = difflib.get_close_matches(given, Settings.model_fields, 1)
            meant = f"; is {near[0]} meant?" if near else ""
            raise ConfigurationError(f"{file}, profile {shown!r}: {given!r} is no setting{meant}")
    return found
