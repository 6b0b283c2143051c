"""The tracing that the other tests rely on detects connections and files."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .conftest import Newcomer
from .tracing import Address, read

WORK = Path("/home/user/work")

LINES = """\
connect(3<socket:[1]>, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("8.8.8.8")}, 16) = -1 ENETUNREACH (Network is unreachable)
connect(3<socket:[1]>, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")}, 16) = 0
connect(4<socket:[2]>, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28) = 0
connect(4<socket:[2]>, {sa_family=AF_INET6, sin6_port=htons(8765), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::ffff:127.0.0.1", &sin6_addr), sin6_scope_id=0}, 28) = 0
sendto(5<socket:[3]>, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("192.0.2.1")}, 16) = 1
connect(6<socket:[4]>, {sa_family=AF_UNIX, sun_path="/run/systemd/resolve/io.systemd.Resolve"}, 42) = 0
bind(7<socket:[5]>, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("0.0.0.0")}, 16) = 0
bind(7<socket:[5]>, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
openat(AT_FDCWD</home/user/work>, "read", O_RDONLY|O_CLOEXEC) = 3</home/user/work/read>
openat(AT_FDCWD</home/user/work>, "../\\303\\274ber", O_WRONLY|O_CREAT, 0600) = 3</home/user/\\303\\274ber>
openat(6</home/user/.cach\\303\\251>, "deviceid", O_WRONLY|O_CREAT|O_EXCL, 0600) = 7</home/user/.cach\\303\\251/deviceid>
openat(AT_FDCWD</home/user/work>, "not-there/file", O_WRONLY|O_CREAT, 0600) = -1 ENOENT (No such file or directory)
mkdir("made", 0777)                     = 0
chdir("/tmp")                           = 0
rename("old) = 0", "new")               = 0
renameat2(AT_FDCWD</tmp>, "a", 5</home/user>, "b", 0) = 0
""".splitlines()  # noqa: E501


def test_remote_addresses_are_found_and_name_servers_count_as_remote() -> None:
    did = read(LINES, WORK)
    assert did.distant == {
        Address("8.8.8.8", 53),
        Address("127.0.0.53", 53),
        Address("2001:db8::1", 443),
        Address("192.0.2.1", 9),
    }
    assert did.exposed == {Address("0.0.0.0", 0)}
    assert did.resolvers == {"/run/systemd/resolve/io.systemd.Resolve"}


def test_files_are_named_in_the_folder_of_their_call() -> None:
    written = {str(path) for path in read(LINES, WORK).written}
    assert written == {
        "/home/user/über",
        "/home/user/.caché/deviceid",
        "/home/user/work/made",
        *("/tmp/old) = 0", "/tmp/new", "/tmp/a", "/home/user/b"),
    }


REACHES_OUT = """
import socket, subprocess, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    try:
        sock.connect(("192.0.2.1", 9))
    except OSError:
        pass
subprocess.run([sys.executable, "-c", f"open({sys.argv[1]!r}, 'w').write('x')"], check=True)
open("mine", "w").close()
"""


def test_files_that_a_child_writes_and_connections_to_other_hosts_are_noticed(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    did = newcomer.traced([sys.executable, "-c", REACHES_OUT, str(elsewhere)])
    assert did.distant == {Address("192.0.2.1", 9)}
    assert newcomer.wrote_elsewhere(did) == {elsewhere}
    assert newcomer.work / "mine" in did.written


ONLY_LOOPBACK = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname(), timeout=60).close()
try:
    socket.create_connection(("192.0.2.1", 9), timeout=60)
except OSError as error:
    print(error)
"""


def test_an_isolated_command_has_only_loopback(newcomer: Newcomer) -> None:
    said = newcomer.alone([sys.executable, "-c", ONLY_LOOPBACK])
    assert re.search("unreachable", said)


def test_a_failing_command_fails_the_test(newcomer: Newcomer) -> None:
    with pytest.raises(AssertionError, match="said before it failed"):
        newcomer.alone(
            [sys.executable, "-c", "print('said before it failed'); raise SystemExit(3)"]
        )
