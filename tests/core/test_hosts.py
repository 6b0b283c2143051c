"""Only localhost, 127.0.0.0/8 and ::1 are this machine, and no accepted host is ambiguous."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations._core.hosts import is_loopback, is_plain_host
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations._core.settings import resolve_base_url
from nexusflow_integrations.errors import ConfigurationError

OURS = ["localhost", "LOCALHOST", "127.0.0.1", "127.0.0.0", "127.255.255.255", "::1", "0:0::1"]
NOT_OURS = [
    "anything.localhost",
    "localhost.localhost",
    "localhost.localdomain",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "127.0.0.1.evil.example",
    "128.0.0.1",
    "0.0.0.0",
    "10.0.0.1",
    "ip6-localhost",
    "::",
    "::2",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::127.0.0.1",
    "64:ff9b::127.0.0.1",
    "fe80::1",
]
TRICKS = [
    "localhost.",
    "localhost..",
    ".localhost",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0x7f.0.0.1",
    "0x7f.1",
    "0177.0.0.1",
    "127.0.0.01",
    "127.0.0.0x1",
    "127.0.0.256",
    "127.0.0.1.1",
    "evil.1",
    "evil.0x1",
    "127.0.0.1\\.evil.example",
    "localhost\\evil.example",
    "localhost%2eevil.example",
    "localhost%00.evil.example",
    "localhost%evil",
    "::1%lo",
    "::1%25lo",
    "fe80::1%eth0",
    "::1::",
    "::ffff:127.0.0.01",
    "local host",
    "local\thost",
    "local\nhost",
    "localhost\n",
    "\x00localhost",
    "localhost\u200b",
    "\uff4cocalhost",
    "127\u30020\u30020\u30021",
    "\uff11\uff12\uff17.0.0.1",
    "\u0661\u0662\u0667.0.0.1",
    "lo\u00adcalhost",
    "l\u043ecalhost",
    "\ud800localhost",
    "a..b",
    "-a.b",
    "a-.b",
    "a" * 64,
    ".".join(["a" * 60] * 5),
    "exam*ple",
    "exam$ple",
    "(localhost)",
    "localhost,evil.example",
    "localhost;evil.example",
    "",
    ".",
    "-",
]


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@pytest.mark.parametrize("host", OURS)
def test_plain_http_to_this_machine_is_allowed(host: str) -> None:
    assert is_loopback(host)
    assert is_plain_host(host)
    url = f"http://{bracketed(host)}:8080/v1"
    assert resolve_base_url(url) == url.lower()


@pytest.mark.parametrize("host", NOT_OURS)
def test_plain_http_to_another_machine_is_refused_however_it_is_named(host: str) -> None:
    assert not is_loopback(host)
    for url in (f"http://{bracketed(host)}/v1", f"http://{bracketed(host)}:80"):
        with pytest.raises(ConfigurationError, match=r"^base_url is plain http to "):
            resolve_base_url(url)
    url = f"https://{bracketed(host)}/v1"
    assert resolve_base_url(url) == url
    assert resolve_base_url(url.replace("https", "http"), allow_http=True)


@pytest.mark.parametrize("host", TRICKS, ids=ascii)
def test_a_host_that_two_parsers_may_read_in_two_ways_is_refused_in_one_sentence(
    host: str,
) -> None:
    assert not is_plain_host(host)
    assert not is_loopback(host)
    for url in (f"http://{bracketed(host)}/v1", f"https://{bracketed(host)}:443/v1"):
        with pytest.raises(ConfigurationError, match=r"^base_url must ") as caught:
            resolve_base_url(url, allow_http=True)
        assert str(caught.value).isascii()
        assert len(str(caught.value)) < 200
    with pytest.raises(ConfigurationError, match="Redis"):
        RedisAddress(f"redis://:hunter2@{bracketed(host)}:6379/0")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost@evil.example/v1",
        "http://localhost:80@evil.example/v1",
        "http://evil.example@localhost/v1",
        "http://@localhost/v1",
        "http://localhost#@evil.example/v1",
        "http://localhost?@evil.example/v1",
        "http://localhost\\@evil.example/v1",
        "http:/\\localhost/v1",
        "http:\\\\localhost/v1",
        "http:/localhost/v1",
        "http:localhost/v1",
        "http:///localhost/v1",
        "http:////localhost/v1",
        "//localhost/v1",
        "http://http://localhost/v1",
        "http://[localhost]/v1",
        "http://[127.0.0.1]/v1",
        "http://[::1]evil.example/v1",
        "http://[::1].evil.example/v1",
        "http://evil.example[::1]/v1",
        "http://::1/v1",
        "http://[[::1]]/v1",
        "http://[]/v1",
        "http://[v1.fe80::a]/v1",
        "http://localhost:/v1",
        "http://localhost:0/v1",
        "http://localhost:080/v1",
        "http://localhost:+80/v1",
        "http://localhost: 80/v1",
        "http://localhost:8_0/v1",
        "http://localhost:65536/v1",
        "http://localhost:80:80/v1",
        "http://localhost:\u0668\u0660/v1",
        "http://localhost:80\\evil/v1",
        "http://localhost\t/v1",
        "ht\ntp://localhost/v1",
        "http://loc\ralhost/v1",
        "h\u0442tp://localhost/v1",
        "javascript://localhost/v1",
        "file://localhost/v1",
        "ws://localhost/v1",
        "http://localhost/v1\\..\\x",
        "http://localhost/v1\x00",
        "http://",
        "http://:80",
        "",
    ],
    ids=ascii,
)
def test_a_url_with_a_trick_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^base_url must "):
        resolve_base_url(url, allow_http=True)


@given(
    st.text(st.characters(codec="utf-8") | st.sampled_from("127.0x@:/\\#?%[]\t\n l"), max_size=30)
)
def test_every_accepted_url_has_the_host_that_the_standard_parser_finds(rest: str) -> None:
    try:
        url = resolve_base_url(f"http://{rest}", allow_http=True)
    except ConfigurationError:
        return
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert is_plain_host(parts.hostname)
    assert parts.username is None
    assert not parts.query
    assert not parts.fragment
    assert url.isascii()
    assert url.isprintable()


@given(
    st.one_of(
        st.from_regex(r"\A(0x[0-9a-f]{1,8}|[0-9]{1,10})(\.(0x[0-9a-f]{1,8}|[0-9]{1,3})){0,3}\Z"),
        st.ip_addresses(v=4).map(str),
    )
)
def test_a_number_that_the_system_takes_for_an_address_is_that_address_or_refused(
    host: str,
) -> None:
    try:
        packed = socket.inet_aton(host)
    except OSError:
        return
    if is_plain_host(host):
        assert socket.inet_ntoa(packed) == host
        assert is_loopback(host) == (packed[0] == 127)
