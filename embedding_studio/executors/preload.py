"""Imported once by the fork server: loads the plugins, so that no trial waits for their imports."""

import gc

from embedding_studio.engine.jobs import load_catalog
from embedding_studio.settings import Settings

load_catalog(Settings().plugins_folder)
# what the imports made lives for ever: no trial's collector goes through it, nor copies its pages
gc.collect()
gc.freeze()
