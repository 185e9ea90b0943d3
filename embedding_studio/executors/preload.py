"""Imported once by the fork server: loads the plugins, so that no trial waits for their imports."""

from embedding_studio.methods import discover_methods
from embedding_studio.settings import Settings

discover_methods(Settings().plugins_folder)
