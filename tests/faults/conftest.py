"""Fixtures of the fault tests."""

from tests.faults.harness import (
    nursery,
    remote_house,
    remote_yard,
    shared_yard,
    yard,
    yard_on_secantus,
)

__all__ = ["nursery", "remote_house", "remote_yard", "shared_yard", "yard", "yard_on_secantus"]
