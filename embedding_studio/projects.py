"""Projects: each sees its own clickstream, tasks and models, and nothing of another's."""

import re
from typing import NewType

from embedding_studio.errors import InvalidInput

DEFAULT_PROJECT = "default"

RegisteredName = NewType("RegisteredName", str)
"""What MLflow's registry calls a model of a project."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def check_project(project: str) -> str:
    """Return a project's id. Raises InvalidInput if it cannot be one."""
    if not _SLUG.fullmatch(project):
        raise InvalidInput(
            f"{project!r} cannot be the id of a project: it takes 1 to 63 of a-z, 0-9, _ and -, "
            "beginning with a letter or a digit"
        )
    return project


_MODEL_NAME = re.compile(r"\w[\w .+-]{0,99}")


def check_model_name(name: str) -> str:
    """Return a name that a method, or a registered model, may have. Raises ValueError."""
    if not _MODEL_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a method, or a model: use up to 100 letters, digits, spaces, "
            "._+-"
        )
    return name


def name_in(asking: str, owner: str, name: str) -> str:
    """Return how a project names a model: `owner:name` where it is another project's. No name, and
    no project, has a colon."""
    return name if asking == owner else f"{owner}:{name}"


def split_owner(asking: str, name: str) -> tuple[str, str]:
    """Return the project and the name that `name_in` was given."""
    owner, separator, own = name.partition(":")
    return (owner, own) if separator else (asking, name)


def registered_name(project: str, name: str) -> RegisteredName:
    """Return what MLflow calls a project's model of this name. A name has no parentheses, so two
    projects never share one."""
    return RegisteredName(name if project == DEFAULT_PROJECT else f"{name} ({project})")


def split_name(name: RegisteredName) -> tuple[str, str]:
    """Return the project and the name that `registered_name` was given."""
    model, separator, project = name.removesuffix(")").rpartition(" (")
    return (project, model) if separator and name.endswith(")") else (DEFAULT_PROJECT, name)
