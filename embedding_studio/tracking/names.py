"""A method's names of parameters and metrics, as MLflow can keep them."""

import posixpath
import re

from embedding_studio.errors import MethodError

MAX_NAME_LENGTH = 200
"""MLflow takes 250 characters; our aggregates append to them."""
TRAINED_TOKENS = "trained_tokens"
"""The metric by which costs are counted: a method's own of that name gets another."""
_FORBIDDEN = r"[^/\w.\- ]"
_ESCAPED = re.compile(":([0-9a-f]+):")


def to_mlflow(name: str) -> str:
    """Return the name itself where MLflow takes it, else with characters as `:<hex code>:`.

    `ndcg@10` becomes `ndcg:40:10`. No two names become the same. Raises MethodError for one that is
    empty or too long."""
    if not name:
        raise MethodError("the name of a parameter or metric is empty")
    key = name
    if re.search(_FORBIDDEN.replace(" ]", " :]"), name) or _ESCAPED.search(name):
        key = re.sub(_FORBIDDEN, _escape, name)
    if (
        posixpath.normpath(key) != key
        or key.startswith(("..", "/"))
        or key in (".", TRAINED_TOKENS)
    ):
        key = re.sub(r"[^\w\- ]|^\w", _escape, name)
    if len(key) > MAX_NAME_LENGTH:
        raise MethodError(
            f"the name {name[:60]!r}... of a parameter or metric takes {len(key)} characters in "
            f"MLflow: {MAX_NAME_LENGTH} are allowed, each counts several times that is no letter, "
            "digit, space or one of _-./:"
        )
    return key


def from_mlflow(key: str) -> str:
    """Return the name that `to_mlflow` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), key)


def _escape(character: re.Match[str]) -> str:
    return f":{ord(character[0]):x}:"
