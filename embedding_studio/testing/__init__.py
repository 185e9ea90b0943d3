"""The kit that checks a plugin: `MethodTestCase` for pytest, `methods check` for the shell."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedding_studio.testing.case import MethodTestCase as MethodTestCase

__all__ = ["MethodTestCase"]


def __getattr__(name: str) -> Any:
    if name == "MethodTestCase":  # the only one that needs pytest
        from embedding_studio.testing.case import MethodTestCase

        return MethodTestCase
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
