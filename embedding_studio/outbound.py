"""HTTP to addresses that clients chose.

It does not reach into the operator's own network by accident, and takes no more time and bytes than
allowed."""

import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Self

import httpcore
import httpx

from embedding_studio.errors import ForbiddenAddress, Unreadable
from embedding_studio.threads import in_own_thread

_REDIRECTS = 10
_IDLE_CONNECTIONS = 20
_TOO_LATE = "its time is up"
_PACE_BYTES = 64 * 1024
_COMPRESSIONS = ("gzip", "deflate", "compress", "br", "zstd")
"""A few bytes in one of these could become any number of bytes. Object stores name other codings
for plain images too, as aws-chunked, which do no harm."""


class Outbound:
    """A client of servers that nobody vouches for. Threads may share it.

    A name is resolved once: the address that is judged is the one that is connected to, whatever
    the name leads to a moment later. Redirects are judged like any address. Proxies of the
    environment are not used, and cookies are not kept.

    Raises httpx.HTTPError or httpx.InvalidURL for what cannot be reached, ForbiddenAddress for a
    host without an address that may be reached: one that has none, or a private one."""

    def __init__(self, allow_private: bool) -> None:
        self._http = httpx.Client(
            transport=_Transport(_Network(allow_private)),
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"accept-encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def get(self, url: str, seconds: float, max_bytes: int) -> bytes:
        """Return the first `max_bytes` of what a URL leads to.

        Redirects are followed, all of them within the seconds. Raises httpx.HTTPStatusError unless
        the status is a 2xx, Unreadable where the answer is compressed or redirects without end."""
        with self._answer(url, seconds) as response:
            return _content(response, max_bytes)

    @contextmanager
    def opened(self, url: str, seconds: float) -> Iterator[Iterator[bytes]]:
        """Yield the parts of what a URL leads to, compressed where the server compresses them.

        The first and each further 64 KB have so many seconds to come; redirects and what is raised
        are as for `get`."""
        with self._answer(url, seconds) as response:
            yield _paced(response, seconds)

    @contextmanager
    def _answer(self, url: str, seconds: float) -> Iterator[httpx.Response]:
        """Yield the answer, unread, to which redirects lead."""
        request = self._request("GET", url, seconds)
        for _ in range(_REDIRECTS + 1):
            # httpx would follow by itself, but reads the body of every redirect to its end
            response = self._send(request)
            try:
                if response.next_request is None:
                    yield response.raise_for_status()
                    return
                request = response.next_request
            finally:
                response.close()
        raise Unreadable(f"{url[:200]} redirects more than {_REDIRECTS} times")

    def post(self, url: str, content: bytes, headers: Mapping[str, str], seconds: float) -> int:
        """Return the status of the answer, whose body is not read. Redirects are not followed."""
        response = self._send(self._request("POST", url, seconds, content=content, headers=headers))
        response.close()
        return response.status_code

    def _request(self, method: str, url: str, seconds: float, **more: Any) -> httpx.Request:
        with _no_host():
            return self._http.build_request(method, url, timeout=_end_of(seconds), **more)

    def _send(self, request: httpx.Request) -> httpx.Response:
        with _no_host():  # it may be in a redirect
            return self._http.send(request, stream=True)


@contextmanager
def _no_host() -> Iterator[None]:
    """Raise what httpx raises for other hosts that cannot be one."""
    try:
        yield
    except UnicodeError as error:
        raise httpx.InvalidURL(f"the host cannot be one: {error}") from error


def _content(response: httpx.Response, max_bytes: int) -> bytes:
    encoding = response.headers.get("content-encoding", "")
    if any(coding in encoding.lower() for coding in _COMPRESSIONS):
        raise Unreadable(f"the server answers in {encoding[:40]!r}, though asked for plain bytes")
    content = io.BytesIO()
    for chunk in response.iter_raw():
        content.write(chunk[: max_bytes - content.tell()])
        if content.tell() == max_bytes:
            break
    return content.getvalue()


def _paced(response: httpx.Response, seconds: float) -> Iterator[bytes]:
    connection: _Stream = response.extensions["network_stream"]
    connection.ends_at, taken = time.monotonic() + seconds, 0
    try:
        for part in response.iter_raw():
            asleep_at = time.monotonic()
            yield part
            connection.ends_at += time.monotonic() - asleep_at
            if (taken := taken + len(part)) >= _PACE_BYTES:
                connection.ends_at, taken = time.monotonic() + seconds, 0
    finally:
        connection.ends_at = None


def _end_of(seconds: float) -> httpx.Timeout:
    """Return the moment when these seconds are over, as it is told to `_Network` and `_Stream`.

    httpx hands a timeout to each operation on the network. A duration would begin anew with each
    byte of a server that sends one now and then; a moment is the same for all of them."""
    return httpx.Timeout(time.monotonic() + seconds, pool=None)


def _left(moment: float | None) -> float:
    assert moment is not None
    left = moment - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout(_TOO_LATE)
    return left


class _Transport(httpx.BaseTransport):
    """httpx's way to a network of ours, for which its own transport has no place."""

    def __init__(self, network: httpcore.NetworkBackend) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=None,  # those who ask are few, and must not wait for each other
            max_keepalive_connections=_IDLE_CONNECTIONS,
            network_backend=network,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        with _errors_of_httpx():
            response = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(
                        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _errors_of_httpx():
            yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


@contextmanager
def _errors_of_httpx() -> Iterator[None]:
    """Raise httpx's error for that of httpcore, which has the same name."""
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error


class _Network(httpcore.SyncBackend):
    """Connects to addresses that may be reached. Each `timeout` is a moment."""

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
        address = self._address_of(host, _addresses(host, port, _left(timeout)))
        stream = super().connect_tcp(address, port, _left(timeout), local_address, socket_options)
        return _Stream(stream)

    def _address_of(self, host: str, addresses: list[str]) -> str:
        if addresses and (self._allow_private or all(map(is_public, addresses))):
            return addresses[0]
        if self._allow_private:
            raise httpcore.ConnectError(f"{host[:200]} has no address")
        # the same for a name that nobody knows: who asks does not learn which ones are known inside
        raise ForbiddenAddress(
            f"{host[:200]} has no address, or one in a private network: set "
            "ES_ALLOW_PRIVATE_ADDRESSES=true if that is meant to be reached"
        )


class _Stream(httpcore.NetworkStream):
    """A connection. Each `timeout` is a moment."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        #: the moment until which is read, where it moves on with what comes
        self.ends_at: float | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self.ends_at or timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # the stream's own `write` would give each part of the buffer all the time that is left
        sock: socket.socket = self._stream.get_extra_info("socket")
        rest = memoryview(buffer)
        while rest:
            sock.settimeout(_left(timeout))
            try:
                rest = rest[sock.send(rest) :]
            except TimeoutError as error:
                raise httpcore.WriteTimeout(_TOO_LATE) from error
            except OSError as error:
                raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _addresses(host: str, port: int, seconds: float) -> list[str]:
    """Return where a name leads; nowhere, if nobody knows it."""

    def look_up() -> list[str]:
        try:
            places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:  # ValueError: it cannot be a name
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise httpcore.ConnectError("the resolver does not answer") from error
            return []
        return [str(place[4][0]) for place in places]

    try:
        return in_own_thread(look_up).result(seconds)  # since a look-up has no timeout
    except TimeoutError as error:
        raise httpcore.ConnectTimeout("the resolver does not answer in time") from error


_INTERNET = ipaddress.IPv6Network("2000::/3")  # nothing else is given to networks
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL = [
    ipaddress.ip_network(network)
    for network in (
        # special by IANA's registries, though not to `ipaddress` of every Python
        "192.0.0.0/24",
        "192.88.99.0/24",
        "2001::/23",
        "3fff::/20",
        # the host of a virtual machine in Azure
        "168.63.129.16/32",
    )
]


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the internet, not to somebody's own network.

    An IPv6 address that packets leave for an IPv4 address is judged as the latter."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _INTERNET:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _SPECIAL)
