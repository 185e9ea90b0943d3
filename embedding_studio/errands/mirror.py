"""MLflow's aliases, brought to where the champions are.

Everything here may be interrupted anywhere, repeated, and done by several workers at once."""

import logging
from collections.abc import Collection

from embedding_studio.engine.champions import Champions
from embedding_studio.engine.house import House
from embedding_studio.errors import Conflict, CorruptModel, StoreUnavailable
from embedding_studio.projects import split_name

log = logging.getLogger(__name__)


def bring_along(house: House, methods: Collection[str]) -> None:
    """Take over from MLflow's registry which version of these methods' models is champion, in all
    projects, and its iterations of before they told whether their models are kept."""
    house.tracking.iterations.adopt_older()
    for name in house.tracking.registry.champion_versions():
        project, model_name = split_name(name)
        known = house.store.in_project(project).models.find(model_name)
        method = known.fine_tuning_method if known else model_name
        if method not in methods:
            continue
        try:
            Champions(house.in_project(project)).of(model_name, method)
        except (Conflict, CorruptModel) as error:  # its next task ends with the same words
            log.warning("the champion of %r in MLflow cannot be taken over: %s", name, error)


def mirror_all(house: House) -> None:
    """Point every alias that is behind to its champion."""
    for model in house.store.models.all(are_mirrored=False):
        try:
            Champions(house.in_project(model.project)).mirror(model.name)
        except StoreUnavailable:
            raise
        except Exception:  # one that cannot be set keeps no other from being set
            log.exception("MLflow's alias of %r may be behind its champion", model.registered_name)
