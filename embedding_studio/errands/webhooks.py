"""Ends of tasks and changes of champions, told to whoever asked: signed, repeated until they
are heard, told apart by id.

The headers are those of the Standard Webhooks specification (standardwebhooks.com), so receivers
can check them with its libraries."""

import base64
import hashlib
import hmac
import ipaddress
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Self

import httpx

from embedding_studio.clock import Clock
from embedding_studio.errors import ConfigurationError, DeliveryFailed, InvalidInput
from embedding_studio.models import RegisteredModel
from embedding_studio.outbound import Outbound, is_public
from embedding_studio.plain import escape
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.tasks import Delivery, FineTuningTask
from embedding_studio.wire.models import ChampionChanged
from embedding_studio.wire.tasks import TaskEnded

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
MAX_ATTEMPTS = 11
FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(hours=6)
SECRET_PREFIX = "whsec_"
AT_A_TIME = 16
"""How many deliveries a worker has under way at most."""
SHARE = 4
"""How many of these may be of one project: a receiver that hangs holds up its own project alone."""
PATIENCE_SECONDS = 1.0
_MOST_TOLD = 3000
_HOST = re.compile(
    r"(?=.{1,254}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.ASCII | re.IGNORECASE
)
# what resolvers take for an IPv4 address, though it is not written as one: 127.1, 0x7f000001
_IPV4_LIKE = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\.?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Message:
    """What is posted to a webhook."""

    #: the same in every attempt, for receivers to know repetitions by
    id: str
    url: str
    #: JSON
    body: bytes


@dataclass(frozen=True, slots=True)
class _Claimed:
    """What is told next, and how that is noted."""

    #: for people
    what: str
    project: str
    url: str
    delivery: Delivery
    body: Callable[[], TaskEnded | ChampionChanged]
    settle: Callable[[datetime, str | None, datetime | None], bool]

    @classmethod
    def of(
        cls,
        told: FineTuningTask | RegisteredModel,
        what: str,
        body: Callable[[], TaskEnded | ChampionChanged],
        settle: Callable[[datetime, str | None, datetime | None], bool],
    ) -> Self:
        assert told.webhook_url is not None
        assert told.delivery is not None
        return cls(what, told.project, told.webhook_url, told.delivery, body, settle)


class Deliveries:
    """What a worker tells to webhooks."""

    def __init__(self, store: Store, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._under_way: Counter[str] = Counter()
        self._lock = threading.Lock()

    def tell(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Tell what is due and note how it went, until there is nothing, or is_over.

        Several threads may do so at once; each thing is told by one of them."""
        while not is_over() and (claimed := self._claim()) is not None:
            try:
                self._tell(claimed)
            finally:
                with self._lock:
                    self._under_way[claimed.project] -= 1

    def _claim(self) -> "_Claimed | None":
        if not self._lock.acquire(timeout=PATIENCE_SECONDS):
            return None  # the store hangs, and one that waits for it is enough
        try:
            # those first of whose project none is under way
            claimed = self._claim_but(at_least=1) or self._claim_but(at_least=SHARE)
            if claimed is not None:
                self._under_way[claimed.project] += 1
            return claimed
        finally:
            self._lock.release()

    def _claim_but(self, at_least: int) -> "_Claimed | None":
        """Claim a delivery, but none of projects of which so many are under way."""
        busy = [project for project, number in self._under_way.items() if number >= at_least]
        now, seconds = self._clock(), 3 * TIMEOUT_SECONDS
        ends, champions = self._store.deliveries, self._store.champion_deliveries
        if (task := ends.claim(now, seconds, busy)) is not None:
            end = partial(TaskEnded.of, task, self._settings)
            return _Claimed.of(task, f"task {task.id}", end, partial(ends.settle, task))
        if (model := champions.claim(now, seconds, busy)) is not None:
            change = partial(ChampionChanged.of, model, self._settings)
            what = f"the champion of {model.registered_name!r}"
            return _Claimed.of(model, what, change, partial(champions.settle, model))
        return None

    def _tell(self, claimed: "_Claimed") -> None:
        error, due_at = None, None
        try:
            self._deliver(claimed)
        except Exception as failure:  # noqa: BLE001 - whatever it is, others are told
            error = escape(str(failure) or type(failure).__name__)[:_MOST_TOLD]
            pause = pause_after(claimed.delivery.attempts)
            due_at = None if pause is None else self._clock() + pause
            log.warning("%s: its webhook: %s", claimed.what, error)
        claimed.settle(self._clock(), error, due_at)

    def _deliver(self, claimed: "_Claimed") -> None:
        if claimed.delivery.attempts > MAX_ATTEMPTS:
            raise DeliveryFailed("given up: whoever told it last did not come to an end")
        settings = self._settings
        if settings.webhook_secret is None:
            raise DeliveryFailed("ES_WEBHOOK_SECRET is not set: nothing can be signed")
        deliver(
            self._http,
            Message(claimed.delivery.id, claimed.url, claimed.body().to_json()),
            parse_secret(settings.webhook_secret.get_secret_value()),
            self._clock(),
        )

    @cached_property
    def _http(self) -> Outbound:
        return Outbound(self._settings.allow_private_addresses)


def check_url(url: str, allow_private: bool) -> None:
    """Raise InvalidInput for what is no address that a message could be posted to.

    Where a name leads is judged at the delivery, for it may change."""
    try:
        parts = httpx.Request("POST", url).url  # as it would be sent
    except Exception as error:
        raise InvalidInput(f"{url!r} is no address: write http(s)://host/...") from error
    if parts.scheme not in ("http", "https") or parts.userinfo:
        raise InvalidInput(f"{url!r} must be http(s)://host/..., without a user")
    if parts.port is not None and not 0 < parts.port < 2**16:
        raise InvalidInput(f"{url!r} has the port {parts.port}: there are 1 to 65535")
    host = parts.raw_host.decode("ascii")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host) or _IPV4_LIKE.fullmatch(host):
            raise InvalidInput(f"{url!r} has the host {host!r}, which cannot be one") from None
    else:
        if not (is_public(host) or allow_private):
            raise InvalidInput(
                f"{url!r} is an address in a private network: set ES_ALLOW_PRIVATE_ADDRESSES=true "
                "if that is meant to be reached"
            )


def deliver(http: Outbound, message: Message, secret: bytes, now: datetime) -> None:
    """Post a message once. Raises DeliveryFailed unless the answer is a 2xx.

    A redirect is no 2xx: it is not followed."""
    timestamp = str(int(now.timestamp()))
    headers = {
        "content-type": "application/json",
        "webhook-id": message.id,
        "webhook-timestamp": timestamp,
        "webhook-signature": sign(secret, message.id, timestamp, message.body),
    }
    try:
        status = http.post(message.url, message.body, headers, TIMEOUT_SECONDS)
    except Exception as error:
        raise DeliveryFailed(f"{message.url}: {error or type(error).__name__}") from error
    if not 200 <= status < 300:
        raise DeliveryFailed(f"{message.url} answered {status}")


def sign(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """Return `v1,<base64>`: HMAC-SHA256 over id.timestamp.body."""
    content = b".".join([message_id.encode(), timestamp.encode(), body])
    digest = hmac.new(secret, content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def check_secret(settings: Settings) -> None:
    """Raise ConfigurationError if there is a secret to sign with and it is none."""
    if settings.webhook_secret is not None:
        parse_secret(settings.webhook_secret.get_secret_value())


def parse_secret(text: str) -> bytes:
    """Return the bytes of `whsec_<base64>`; 24 to 64 of them. Raises ConfigurationError."""
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        secret = b""
    if not (text.startswith(SECRET_PREFIX) and 24 <= len(secret) <= 64):
        raise ConfigurationError(
            "ES_WEBHOOK_SECRET is no webhook secret: whsec_ and the base64 of 24 to 64 random "
            "bytes, as `echo whsec_$(openssl rand -base64 32)` prints"
        )
    return secret


def pause_after(attempts: int) -> timedelta | None:
    """Return how long to wait after so many failed attempts: four times as long each time, 6 h at
    most; None when it is time to give up, after about a day."""
    if attempts >= MAX_ATTEMPTS:
        return None
    pause: timedelta = FIRST_PAUSE * 4 ** (attempts - 1)
    return min(LONGEST_PAUSE, pause)
