"""Checks hosts in URLs: a host is accepted only if every parser reads it in the same way.

The API key is sent to the host, and over plain http only to this machine. So no host may look like
this machine to one parser and like another host to another parser or to the resolver.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAX_NAME = 253
_PLACE = re.compile(
    r"(\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]|[^\[\]:]+)(?::([1-9][0-9]{0,4}))?", re.ASCII
)
_MAX_PORT = 65535
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
"""What resolvers take for a part of an IPv4 address: a decimal, octal or hexadecimal number."""


def host_of(place: str) -> str | None:
    """Return the host of ``host`` or ``host:port`` in lower case.

    An IPv6 address is returned without brackets. ``None`` if the host is ambiguous or the port
    invalid.
    """
    parts = _PLACE.fullmatch(place)
    if parts is None or int(parts[2] or 1) > _MAX_PORT:
        return None
    host = parts[1].strip("[]").lower()
    return host if is_plain_host(host) else None


def is_plain_host(host: str) -> bool:
    """Whether ``host`` (an IPv6 address without its brackets) is unambiguous.

    Unambiguous hosts are names that consist of ASCII labels and do not end in a dot, IPv4 addresses
    that consist of four decimal numbers, and IPv6 addresses without a zone.
    """
    if ":" in host:
        return isinstance(_address(host), IPv6Address) and "%" not in host
    if len(host) > _MAX_NAME or not _NAME.fullmatch(host):
        return False
    return not _NUMBER.fullmatch(host.rpartition(".")[2]) or _address(host) is not None


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine: ``localhost``, 127.0.0.0/8 or ::1, and nothing else.

    Names under ``.localhost`` do not count: resolvers may ask the network for them.
    """
    address = _address(host)
    if isinstance(address, IPv4Address):
        return address.is_loopback
    return host.lower() == "localhost" or address == IPv6Address("::1")


def in_url(host: str) -> str:
    """Return ``host`` as it is written before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
