"""HTTP to addresses that clients chose: never into the operator's own network by accident."""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from embedding_studio.errors import ForbiddenAddress


def open_http(timeout: float, allow_private: bool, follow_redirects: bool = False) -> httpx.Client:
    """Return a client that raises ForbiddenAddress for hosts in private networks.

    The addresses are judged after the name was resolved, and those judged are those connected to,
    so a name that changes its mind in between gains nothing. Redirects, where they are followed,
    are judged like any address. Proxies of the environment are not used.
    """
    transport = httpx.HTTPTransport()
    # httpx has no public way to give its pool a network
    transport._pool = httpcore.ConnectionPool(
        ssl_context=httpx.create_ssl_context(), network_backend=_Network(allow_private)
    )
    return httpx.Client(
        transport=transport, timeout=timeout, follow_redirects=follow_redirects, trust_env=False
    )


class _Network(httpcore.SyncBackend):
    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} has no address: {error}") from error
        addresses = [str(place[4][0]) for place in found]
        if not self._allow_private:
            for address in addresses:
                if not is_public(address):
                    raise ForbiddenAddress(
                        f"{host} is at {address}, in a private network: set "
                        "ES_ALLOW_PRIVATE_ADDRESSES=true if that is meant to be reached"
                    )
        return super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the internet's, not one within somebody's network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # an IPv4 address in the clothes of an IPv6 one is judged as what it is
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return ip.is_global and not ip.is_multicast
