"""Imported once by the fork server: loads the plugins, so that no trial waits for their imports."""

from embedding_studio.settings import Settings
from embedding_studio.trial import load_catalog

load_catalog(Settings().plugins_folder)
