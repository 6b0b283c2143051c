"""A URL with a password is parsed, shown, copied and pickled without showing the password."""

from __future__ import annotations

import copy
import pickle

import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.redis.address import RedisAddress, address_or_path
from nexusflow_integrations._core.redis.server import is_too_old
from nexusflow_integrations.errors import ConfigurationError

PASSWORD = "hunter2%40home"
SHOWN = {
    f"redis://:{PASSWORD}@host:6379/0": "redis://@host:6379/0",
    f"redis://user:{PASSWORD}@host/3": "redis://user@host/3",
    f"rediss://user:{PASSWORD}@[::1]:6380/0?ssl_cert_reqs=none": (
        "rediss://user@[::1]:6380/0?ssl_cert_reqs=none"
    ),
    f"unix:///run/redis.sock?db=2&password={PASSWORD}": "unix:///run/redis.sock?db=2",
    f"rediss://host/0?ssl_password={PASSWORD}": "rediss://host/0",
    "redis://host": "redis://host",
}


@pytest.mark.parametrize(("url", "shown"), SHOWN.items(), ids=SHOWN.values())
def test_a_url_is_shown_copied_and_pickled_without_its_password(url: str, shown: str) -> None:
    address = RedisAddress(url)
    assert address.reveal() == url
    assert str(address) == shown
    assert repr(address) == f"RedisAddress({shown!r})"
    assert copy.copy(address).reveal() == copy.deepcopy(address).reveal() == url
    assert b"hunter2" not in pickle.dumps(address)
    assert pickle.loads(pickle.dumps(address)).reveal() == shown


def test_the_message_of_a_server_is_shown_without_the_password() -> None:
    address = RedisAddress(f"redis://:{PASSWORD}@host")
    for said in (f"unknown command AUTH {PASSWORD}", "wrong: hunter2@home"):
        assert "hunter2" not in address.redact(said)


def test_addresses_are_equal_if_all_of_the_url_is() -> None:
    one, same, other = (RedisAddress(f"redis://:{word}@host") for word in "aab")
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != "redis://:a@host"


@pytest.mark.parametrize(
    "url",
    [
        "http://host:6379/0",
        "redis://",
        "REDIS://:hunter2@host/0",
        " redis://:hunter2@host/0",
        "redis://:hunter2@/0",
        "redis://:hunter2@host:port/0",
        "redis://:hunter2@host:70000",
        "redis://:hunter2@host/zero",
        "redis://:hunter2@host/0#there",
        "redis://:hunter2@host/0?decode_responses=1",
        "redis://:hunter2@[::1/0",
        "redis://:hunter2@host/\n",
    ],
)
def test_an_invalid_server_url_is_refused_without_repeating_it(url: str) -> None:
    for refuse in (RedisAddress, lambda url: NexusFlow("k", cache=url)):
        with pytest.raises(ConfigurationError) as caught:
            refuse(url)
        assert "hunter2" not in str(caught.value)


def test_a_path_is_not_an_address() -> None:
    for path in ("cache.db", "/redis/cache.db", "./redis", True, None):
        assert address_or_path(path) is path


@pytest.mark.parametrize("version", ["4.0.14", "2.8", "4.9-rc1"])
def test_a_server_without_scripts_that_ask_for_the_time_is_too_old(version: str) -> None:
    assert is_too_old(version)


@pytest.mark.parametrize("version", ["5.0", "7.2.4-rc1", "10.0.1", "255.255.255", "unstable", None])
def test_a_server_whose_version_cannot_be_read_is_not_called_too_old(version: str | None) -> None:
    assert not is_too_old(version)
