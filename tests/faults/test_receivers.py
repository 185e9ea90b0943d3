"""Receivers of webhooks that do not answer."""

import base64
from datetime import timedelta

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.errands.webhooks import AT_A_TIME, SHARE
from embedding_studio.schedules import Schedule
from embedding_studio.store import Store
from embedding_studio.tasks import TaskRequest
from tests.faults.harness import Yard
from tests.iterations import make_session
from tests.strangers import Server, endless, once
from tests.waiting import wait_until

pytestmark = pytest.mark.faults


def end_task(store: Store, url: str) -> str:
    task, _ = store.tasks.add(TaskRequest("Toy", webhook_url=url), utc_now())
    return store.tasks.cancel(task.id, utc_now()).id


def test_receivers_that_drip_hold_up_nobody_else(yard: Yard) -> None:
    """While more of a project's receivers than a worker tells at a time send a byte now and then,
    another project's are told, and schedules create their tasks. The log tells of them once a
    minute."""
    store, now = yard.bench.house.store, utc_now()
    dripping, heard = Server(), Server()
    dripping.answer = endless(b"H", b"T", pause=0.1)
    heard.answer = once(b"HTTP/1.1 204 No Content\r\n\r\n")
    for _ in range(2 * AT_A_TIME):
        end_task(store, dripping.url)
    other = store.in_project("acme")
    told = end_task(other, heard.url)
    other.clickstream.register([make_session(1)], now)
    hourly = {"interval_seconds": 3600.0, "min_new_sessions": 1}
    other.schedules.add(Schedule("s-1", "acme", "Toy", now - timedelta(hours=1), now, **hourly))  # type: ignore[arg-type]
    secret = "whsec_" + base64.b64encode(b"s" * 32).decode()
    yard.start_worker(webhook_secret=secret, allow_private_addresses=True)
    wait_until(lambda: dripping.got)
    wait_until(lambda: (delivery := other.tasks.get(told).delivery) and delivery.delivered_at)
    wait_until(lambda: other.schedules.get("s-1").last_task_id)
    assert len(dripping.got) < 2 * AT_A_TIME
    wait_until(lambda: len(dripping.got) > 2 * SHARE)
    assert yard.log.count("its webhook") == 1
    dripping.close()
    heard.close()
