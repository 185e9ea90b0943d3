"""What servers that nobody vouches for can make us do, and what they cannot."""

import ipaddress
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from embedding_studio import outbound
from embedding_studio.errors import ForbiddenAddress, Unreadable
from embedding_studio.outbound import Outbound, is_public
from tests.strangers import OK, Answer, Server, endless, once
from tests.waiting import wait_until

SECONDS = 0.3
ENOUGH = 30.0


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def get(url: str, seconds: float = ENOUGH, allow_private: bool = True) -> bytes:
    with Outbound(allow_private) as http:
        return http.get(url, seconds, 1000)


def post(url: str, content: bytes = b"{}", seconds: float = ENOUGH) -> int:
    with Outbound(allow_private=True) as http:
        return http.post(url, content, {}, seconds)


DRIPS = {
    "status": endless(b"H", b"T", pause=0.02),
    "headers": endless(OK + b"a: ", b"b", pause=0.02),
    "hints": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", pause=0.02),
    "nothing": endless(b"", b"", pause=0.5),
}
SLOW_BODIES = {
    "body": endless(OK + b"\r\n", b"b", pause=0.02),
    "chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nb\r\n", pause=0.02),
}


@pytest.mark.parametrize("answer", [*DRIPS.values(), *SLOW_BODIES.values()])
def test_a_server_that_drips_is_left_in_time(server: Server, answer: Answer) -> None:
    """Bytes that come now and then do not put off the end, wherever in the answer they come."""
    server.answer = answer
    with pytest.raises(httpx.TimeoutException, match=r"time is up|timed out"):
        get(server.url, SECONDS)


@pytest.mark.parametrize("answer", [*DRIPS.values(), *SLOW_BODIES.values()])
def test_a_large_file_that_drips_is_left_in_time(server: Server, answer: Answer) -> None:
    """It may take long, but each 64 KB no longer than allowed."""
    server.answer = answer
    with (
        pytest.raises(httpx.TimeoutException, match=r"time is up|timed out"),
        Outbound(True) as http,
        http.opened(server.url, SECONDS) as parts,
    ):
        for _ in parts:
            pass


def test_a_large_file_may_take_longer_than_its_parts(server: Server) -> None:
    """What comes in time puts the end off; so does whoever reads it."""
    server.answer = endless(OK + b"\r\n", b"b" * 70_000, pause=SECONDS / 4)
    with Outbound(True) as http, http.opened(server.url, SECONDS) as parts:
        began, taken = time.monotonic(), 0
        while time.monotonic() - began < 3 * SECONDS:
            taken += len(next(parts))
        time.sleep(2 * SECONDS)
        assert taken + len(next(parts)) > 3 * 70_000


@pytest.mark.parametrize("answer", DRIPS.values())
def test_a_receiver_that_drips_is_left_in_time(server: Server, answer: Answer) -> None:
    """So it is where something is told."""
    server.answer = answer
    with pytest.raises(httpx.TimeoutException):
        post(server.url, seconds=SECONDS)


def test_a_handshake_that_drips_is_left_in_time(server: Server) -> None:
    """TLS begins with a message of 16 kB, which comes byte by byte."""
    server.answer = endless(b"\x16\x03\x03\x40\x00", b"\x02", pause=0.02)
    with pytest.raises(httpx.TimeoutException):
        get(server.url.replace("http:", "https:"), SECONDS)


def test_a_receiver_that_does_not_read_is_left_in_time(server: Server) -> None:
    """What is told goes into buffers until they are full, and then waits no longer than allowed."""
    server.answer = DRIPS["nothing"]
    with pytest.raises(httpx.TimeoutException):
        post(server.url, b"x" * 30_000_000, SECONDS)


def test_redirects_share_the_time(server: Server) -> None:
    """A server that redirects slowly, again and again, gets no more time than another."""
    head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\n"

    def answer(connection: socket.socket) -> None:
        threading.Event().wait(0.1)
        connection.sendall(head + b"Location: /%d\r\n\r\n" % len(server.got))

    server.answer = answer
    with pytest.raises(httpx.TimeoutException):
        get(server.url, SECONDS)
    assert len(server.got) < 6


def test_redirects_are_counted(server: Server) -> None:
    """A server that redirects in circles is left."""
    server.answer = once(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(Unreadable, match="more than 10 times"), Outbound(True) as http:
        http.get(server.url, ENOUGH, 1000)


@pytest.mark.parametrize("head", [OK, OK + b"Content-Length: 1000000000000\r\n"])
def test_an_answer_without_end_is_not_read_to_it(server: Server, head: bytes) -> None:
    """Nothing beyond the limit is read, and the connection is closed."""
    server.answer = endless(head + b"\r\n", b"x" * 10_000)
    assert get(server.url) == b"x" * 1000
    wait_until(server.ended.is_set)


def test_a_receivers_answer_is_its_status(server: Server) -> None:
    """The body is not read: the connection is closed while the receiver still sends."""
    server.answer = endless(b"HTTP/1.1 500 Oh\r\n\r\n", b"x" * 10_000)
    assert post(server.url) == 500
    wait_until(server.ended.is_set)


def test_a_redirects_body_is_not_read(server: Server) -> None:
    """It may have no end as well."""
    where = b"HTTP/1.1 302 Found\r\nLocation: /image\r\n\r\n"

    def answer(connection: socket.socket) -> None:
        if b"/image" in server.got[-1]:
            once(OK + b"Content-Length: 2\r\n\r\nhi")(connection)
        else:
            endless(where, b"x" * 10_000)(connection)

    server.answer = answer
    assert get(server.url) == b"hi"


def test_headers_without_end_are_refused(server: Server) -> None:
    """They fill no memory either."""
    server.answer = endless(OK, b"a: " + b"x" * 10_000 + b"\r\n")
    with pytest.raises(httpx.RemoteProtocolError):
        get(server.url)


def test_compressed_answers_are_refused(server: Server) -> None:
    """A kilobyte could become a gigabyte; plain bytes were asked for."""
    server.answer = once(OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")
    with pytest.raises(Unreadable, match="'gzip'"):
        get(server.url)
    assert b"accept-encoding: identity" in server.got[0].lower()


@pytest.mark.parametrize("encoding", [b"", b"Identity", b"aws-chunked", b"utf-8"])
def test_what_object_stores_say_of_plain_bytes_is_taken(server: Server, encoding: bytes) -> None:
    """Some keep how an object was uploaded, and tell it with each answer."""
    told = b"Content-Encoding: " + encoding
    server.answer = once(OK + told + b"\r\nContent-Length: 3\r\n\r\nabc")
    assert get(server.url) == b"abc"


def test_cookies_are_not_kept(server: Server) -> None:
    """Who hands out pictures neither fills memory with cookies nor knows us again."""
    server.answer = once(OK + b"Set-Cookie: a=b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    with Outbound(allow_private=True) as http:
        for _ in range(2):
            http.get(server.url, ENOUGH, 10)
    assert b"cookie" not in server.got[1].lower()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, Iterator[str]]:
    """What names lead to, one answer after the other. 127.0.0.1 counts as private."""
    own, names = socket.getaddrinfo, dict[str, Iterator[str]]()

    def look_up(host: str, port: int, *args: Any, **options: Any) -> Any:
        address = next(names[host]) if host in names else host
        return own(address, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(outbound, "is_public", lambda address: address != "127.0.0.1")
    return names


def test_a_name_that_changes_its_mind_gains_nothing(
    server: Server, resolver: dict[str, Iterator[str]]
) -> None:
    """The address that was judged is the one connected to: the name is not looked up again."""
    resolver["rebind.example"] = itertools.chain(["127.0.0.9"], itertools.repeat("127.0.0.1"))
    with pytest.raises(httpx.ConnectError):  # nobody is at the first address
        get(f"http://rebind.example:{server.port}/", allow_private=False)
    with pytest.raises(ForbiddenAddress, match="rebind"):
        get(f"http://rebind.example:{server.port}/", allow_private=False)
    assert server.got == []


def test_a_redirect_into_a_private_network_is_not_followed(
    server: Server, resolver: dict[str, Iterator[str]]
) -> None:
    """A public server's redirect is judged like any address, by name or by number."""
    resolver["inside.example"] = itertools.repeat("127.0.0.1")
    hop = Server("127.0.0.9")
    for host in ("127.0.0.1", "inside.example", "0x7f.1"):
        where = f"Location: http://{host}:{server.port}/\r\nContent-Length: 0\r\n\r\n"
        hop.answer = once(b"HTTP/1.1 302 Found\r\n" + where.encode())
        with pytest.raises(ForbiddenAddress):
            get(hop.url, allow_private=False)
    hop.close()
    assert len(hop.got) == 3
    assert server.got == []


def test_a_redirect_to_a_file_is_not_followed(server: Server) -> None:
    """HTTP leads to HTTP only."""
    server.answer = once(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n")
    with pytest.raises(httpx.UnsupportedProtocol):
        get(server.url)


def test_names_inside_cannot_be_told_from_those_that_nobody_knows(
    resolver: dict[str, Iterator[str]],
) -> None:
    """A refusal says the same of both."""
    resolver["host.example"] = iter(["127.0.0.1", "no such name"])
    reasons = set()
    for _ in range(2):
        with pytest.raises(ForbiddenAddress) as refused:
            get("http://host.example/", allow_private=False)
        reasons.add(str(refused.value))
    assert len(reasons) == 1


def test_a_resolver_that_hangs_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up has no timeout of its own."""
    ended = threading.Event()

    def hang(*_: object, **__: object) -> None:
        ended.wait(5)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(httpx.ConnectTimeout, match="resolver"):
        get("http://host.example/", SECONDS)
    ended.set()


@pytest.mark.parametrize("host", ["a..b", "a" * 70 + ".b", ".", "a b", "xn--a", "[::1"])
def test_what_cannot_be_a_host_is_an_error_like_others(host: str) -> None:
    """Whoever catches what `get` says it raises catches all of it."""
    with pytest.raises((httpx.HTTPError, httpx.InvalidURL, ForbiddenAddress)):
        get(f"http://{host}/", allow_private=False)


WIDE = "127\N{FULLWIDTH FULL STOP}1 \N{FULLWIDTH DIGIT ONE}27.0.0.1"
LOOPBACK = f"""{WIDE}
    127.0.0.1 127.1 127.0.1 127.000.000.001 0177.0.0.1 0177.1 0177.0.0.01 0x7f.0.0.1 0x7f.1 0X7F.1
    0x7f000001 0x7F.0x0.0x0.0x1 2130706433 017700000001 127.255.255.254 0 0.0.0.0 0x0 localhost
    LOCALHOST localhost. 127.0.0.1. [::1] [0:0:0:0:0:0:0:1] [0000::0001] [::] [::ffff:127.0.0.1]
    [::ffff:7f00:1] [0:0:0:0:0:ffff:7f00:1] [::127.0.0.1] [::7f00:1] [::ffff:0:7f00:1]
    [::ffff:0:127.0.0.1] [64:ff9b::7f00:1] [64:ff9b::127.0.0.1] [64:ff9b:1::7f00:1]
    [2002:7f00:1::1] [fe80::1%25lo] [::1%25lo] [fec0::1] 127。0。0。1
    127｡0｡0｡1 ①②⑦.0.0.1 ⓛⓞⓒⓐⓛⓗⓞⓢⓣ user@127.0.0.1
    93.184.215.14@127.0.0.1 127.0.0.1%2f 127.0.0.1%00.example.com
""".split()


def test_loopback_is_known_by_all_its_spellings() -> None:
    """Decimal, octal, hex, shortened, mapped, translated, with zones or IDNA's dots: refused."""
    server = Server("127.0.0.1")
    six = Server("::1", server.port)
    with Outbound(allow_private=False) as http:
        for spelling in LOOPBACK:
            with pytest.raises((ForbiddenAddress, httpx.InvalidURL)):
                http.get(f"http://{spelling}:{server.port}/", ENOUGH, 1000)
    server.close()
    six.close()
    assert server.got == six.got == []


PRIVATE = [
    "127.0.0.1", "10.0.0.1", "172.16.3.4", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.127.255.255", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1",
    "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "168.63.129.16", "::1", "::",
    "fe80::1", "fe80::1%eth0", "fec0::1", "fd00::1", "fc00::1", "fd00:ec2::254", "ff02::1",
    "100::1", "5f00::1", "3fff::1", "2001:db8::1", "2001::1", "2001:2::1", "2001:10::1",
    "2001:0:7f00:1::1", "4000::1", "e000::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_the_internets(address: str) -> None:
    """Loopback, private, link-local, shared, multicast, reserved, for documents."""
    assert not is_public(address)


def dressed(four: str) -> list[str]:
    """Return the IPv6 addresses that lead to an IPv4 one."""
    number = int(ipaddress.IPv4Address(four))
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    return [
        f"::ffff:{high}:{low}",
        f"::ffff:{four}",
        f"64:ff9b::{high}:{low}",
        f"2002:{high}:{low}::1",
    ]


@pytest.mark.parametrize("four", [address for address in PRIVATE if ":" not in address])
def test_a_private_address_dressed_as_ipv6_is_private(four: str) -> None:
    """Mapped, translated, tunneled, compatible."""
    others = [f"::{four}", f"::ffff:0:{four}", f"64:ff9b:1::{four}"]
    assert not any(map(is_public, dressed(four) + others))


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "1.1.1.1", "223.255.255.254"])
def test_addresses_that_are_the_internets(address: str) -> None:
    """Those of public servers are public, and so they are where IPv6 leads to them."""
    assert all(map(is_public, [address, *dressed(address)]))


@pytest.mark.parametrize("address", ["2606:2800:21f:cb07::1", "2a00:1450:4001::1", "2001:4860::1"])
def test_ipv6_addresses_that_are_the_internets(address: str) -> None:
    """Those of public servers are public."""
    assert is_public(address)
