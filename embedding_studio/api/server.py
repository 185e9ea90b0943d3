"""The API as a process of its own."""

import gc
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import closing, suppress

import uvicorn
from fastapi import FastAPI

from embedding_studio.api import connections, errors
from embedding_studio.api.app import create_app
from embedding_studio.api.connections import Room
from embedding_studio.errors import ConfigurationError
from embedding_studio.logs import OncePerMinute
from embedding_studio.settings import Settings
from embedding_studio.store import Store, open_store

_logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 10
_OF_STRANGERS = ("asyncio", "uvicorn.error", connections.__name__, errors.__name__)
"""Loggers that anyone who connects can make write."""


def serve(settings: Settings) -> None:
    """Answer requests to the API, as `serve_app` does."""
    serve_app(settings, create_app, ("ES_API_PORT", settings.api_port), "the API is")


def serve_app(
    settings: Settings,
    create: Callable[[Store, Settings], FastAPI],
    port: tuple[str, int],
    what: str,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM, then finish those under way and return.

    create: makes the application. port: with the setting that names it; 0 takes a free one. what:
    is at that address, for the log. Runs in the main thread. Raises ConfigurationError when the
    address cannot be bound, or is open to anyone while there are no API keys; StoreUnavailable when
    the store does not answer."""
    # uvicorn ends its work on both signals, then raises them again for its caller
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        closing(open_store(settings.resolved_store_url)) as store,
        listen(settings.api_host, port[1], port[0]) as listener,
    ):
        check_may_serve(store, settings)
        host, number = listener.getsockname()[:2]
        shown_host = f"[{host}]" if ":" in host else host
        _logger.info("%s at http://%s:%d, the manual at /docs", what, shown_host, number)
        for name in _OF_STRANGERS:
            logging.getLogger(name).addFilter(OncePerMinute())
        config = uvicorn.Config(
            create(store, settings),
            http=Room.within(settings).protocol(),
            loop="asyncio",
            ws="none",
            backlog=connections.BACKLOG,
            log_config=None,
            log_level="warning",
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
        # what is there by now stays, and is not gone through each time a large body was parsed
        gc.freeze()
        uvicorn.Server(config).run(sockets=[listener])


def check_may_serve(store: Store, settings: Settings) -> None:
    """Raise ConfigurationError if anyone could reach the API and do everything."""
    if settings.is_loopback or settings.allow_open or store.keys.all():
        return
    raise ConfigurationError(
        f"there are no API keys, so whoever reaches {settings.api_host} could do everything: make "
        "one with `embedding-studio keys create --name first --scope admin`, or set "
        "ES_API_HOST=127.0.0.1, or, behind a proxy that knows who may call, ES_ALLOW_OPEN=true"
    )


def listen(host: str, port: int, setting: str = "ES_API_PORT") -> socket.socket:
    """Return a listening socket. Raises ConfigurationError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # the protocol is named because asyncio switches Nagle's algorithm off only where it is: left
    # on, every small answer waits some 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(connections.BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"nothing can listen at {host} port {port} ({error.strerror}): "
            f"set ES_API_HOST and {setting} to a free address"
        ) from error
    return listener
