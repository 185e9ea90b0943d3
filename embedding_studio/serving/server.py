"""The process that serves vectors."""

from embedding_studio.api.server import serve_app
from embedding_studio.serving.app import create_app
from embedding_studio.settings import Settings


def serve(settings: Settings) -> None:
    """Answer requests for vectors, as `serve_app` does."""
    serve_app(settings, create_app, ("ES_SERVE_PORT", settings.serve_port), "vectors are")
