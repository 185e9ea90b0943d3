"""Projects: each sees its own clickstream, tasks and models, and nothing of another's."""

import re

from embedding_studio.errors import InvalidInput

DEFAULT_PROJECT = "default"

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def check_project(project: str) -> str:
    """Return a project's id. Raises InvalidInput if it cannot be one."""
    if not _SLUG.fullmatch(project):
        raise InvalidInput(
            f"{project!r} cannot be the id of a project: it takes 1 to 63 of a-z, 0-9, _ and -, "
            "beginning with a letter or a digit"
        )
    return project
