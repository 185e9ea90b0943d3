"""Projects: each sees its own clickstream, tasks and models, and nothing of another's."""

import re
from typing import NewType

from embedding_studio.errors import InvalidInput

DEFAULT_PROJECT = "default"

RegisteredName = NewType("RegisteredName", str)
"""What MLflow's registry calls the models of a method in a project."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def check_project(project: str) -> str:
    """Return a project's id. Raises InvalidInput if it cannot be one."""
    if not _SLUG.fullmatch(project):
        raise InvalidInput(
            f"{project!r} cannot be the id of a project: it takes 1 to 63 of a-z, 0-9, _ and -, "
            "beginning with a letter or a digit"
        )
    return project


def registered_name(project: str, method: str) -> RegisteredName:
    """Return the name of a project's models of a method. A method's name has no parentheses, so two
    projects never share one."""
    return RegisteredName(method if project == DEFAULT_PROJECT else f"{method} ({project})")


def split_name(name: RegisteredName) -> tuple[str, str]:
    """Return the project and the method that `registered_name` made a name of."""
    method, separator, project = name.removesuffix(")").rpartition(" (")
    return (project, method) if separator and name.endswith(")") else (DEFAULT_PROJECT, name)
