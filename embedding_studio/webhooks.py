"""The end of a task, told to whoever asked: signed, repeated until it is heard, told apart by id.

The headers are those of the Standard Webhooks specification (standardwebhooks.com), so receivers
can check them with its libraries.
"""

import base64
import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx

from embedding_studio.errors import ConfigurationError, DeliveryFailed, ForbiddenAddress
from embedding_studio.outbound import Outbound
from embedding_studio.settings import Settings
from embedding_studio.store.base import Store
from embedding_studio.tasks import FineTuningTask

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
MAX_ATTEMPTS = 11
FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(hours=6)
SECRET_PREFIX = "whsec_"


@dataclass(frozen=True, slots=True)
class Message:
    """id: the same in every attempt, for receivers to know repetitions by. body: JSON."""

    id: str
    url: str
    body: bytes


def tell_ends(
    store: Store,
    settings: Settings,
    clock: Callable[[], datetime],
    describe: Callable[[FineTuningTask], bytes],
) -> None:
    """Tell every end that is due, and note how it went. describe: makes a message's body."""
    while (task := store.claim_delivery(clock(), 3 * TIMEOUT_SECONDS)) is not None:
        assert task.delivery is not None
        assert task.webhook_url is not None
        error, due_at = None, None
        try:
            if settings.webhook_secret is None:
                raise DeliveryFailed("ES_WEBHOOK_SECRET is not set: nothing can be signed")
            deliver(
                Message(task.delivery.id, task.webhook_url, describe(task)),
                parse_secret(settings.webhook_secret.get_secret_value()),
                clock(),
                settings.allow_private_addresses,
            )
        except (DeliveryFailed, ConfigurationError) as failure:
            error = str(failure)
            pause = pause_after(task.delivery.attempts + 1)
            due_at = None if pause is None else clock() + pause
            log.warning("task %s: its webhook: %s", task.id, error)
        store.settle_delivery(task, clock(), error, due_at)


def deliver(message: Message, secret: bytes, now: datetime, allow_private: bool) -> None:
    """Post a message once. Raises DeliveryFailed unless the answer is a 2xx.

    A redirect is no 2xx: it is not followed.
    """
    timestamp = str(int(now.timestamp()))
    headers = {
        "content-type": "application/json",
        "webhook-id": message.id,
        "webhook-timestamp": timestamp,
        "webhook-signature": sign(secret, message.id, timestamp, message.body),
    }
    try:
        with Outbound(allow_private) as http:
            status = http.post(message.url, message.body, headers, TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, ForbiddenAddress) as error:
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
