"""Which addresses a command reaches for and which files it writes, as the kernel saw it.

``strace`` follows the command and everything that it starts. What its lines mean is decided by
`read`, a pure function.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from pathlib import Path

_SOCKETS = ("connect", "bind", "sendto", "sendmsg", "sendmmsg")
_FILES = (
    *("open", "openat", "openat2", "creat", "mknod", "mknodat", "truncate"),
    *("mkdir", "mkdirat", "rename", "renameat", "renameat2", "rmdir"),
    *("link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat"),
)
_CALL = re.compile(r"(?P<name>\w+)\((?P<rest>.*)", re.DOTALL)
_ANSWER = re.compile(r"\)\s+= (?P<answer>-?\d+|\?)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FOLDER = re.compile(r"(?:AT_FDCWD|\d+)<(?P<path>[^>]*)>")
_WRITES = re.compile(r"\bO_(?:WRONLY|RDWR|CREAT|TRUNC|APPEND)\b")
_INTERNET = re.compile(
    r'htons\((?P<port>\d+)\).*?(?:inet_addr\("(?P<four>[^"]*)"\)|'
    r'inet_pton\(AF_INET6, "(?P<six>[^"]*)")'
)
_UNIX = re.compile(r'sun_path=@?"(?P<path>[^"]*)"')
_DNS = 53


@dataclass(frozen=True, order=True)
class Address:
    """An internet address."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether nothing sent there leaves this machine; a name server may pass it on."""
        address = ip_address(self.host)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback and self.port != _DNS


@dataclass
class Trace:
    """What a command did, with all that it started.

    Attributes:
        reached: Addresses connected or sent to, whether or not that succeeded.
        bound: Addresses that sockets were bound to.
        local: Paths of the Unix sockets connected to.
        written: Paths opened for writing, made, renamed or removed, where that succeeded.
        text: All of strace's lines, what was sent among them.
    """

    reached: set[Address] = field(default_factory=set)
    bound: set[Address] = field(default_factory=set)
    local: set[str] = field(default_factory=set)
    written: set[Path] = field(default_factory=set)
    text: str = ""

    @property
    def distant(self) -> set[Address]:
        """Addresses of other machines, and of all name servers, to which data was sent."""
        return {address for address in self.reached if not address.is_loopback}

    @property
    def exposed(self) -> set[Address]:
        """Addresses bound to that others on the network can reach."""
        return {address for address in self.bound if not address.is_loopback}

    @property
    def resolvers(self) -> set[str]:
        """Unix sockets of name services, which could ask the network in the command's place."""
        return {path for path in self.local if "resolve" in path}

    def written_outside(self, *folders: Path) -> set[Path]:
        """Return the user's files that were written outside of ``folders``.

        Compiled Python, devices, ``/proc`` and named semaphores (which are memory) do not count.
        """
        return {
            path
            for path in self.written
            if not any(path.is_relative_to(folder) for folder in folders)
            and "__pycache__" not in path.parts
            and not str(path).startswith(("/dev/null", "/dev/tty", "/dev/shm/sem.", "/proc/"))
        }


def read(lines: Iterable[str], folder: Path) -> Trace:
    """Read one thread's lines of ``strace -y``.

    Args:
        lines: As ``strace -ff`` writes them, a file a thread.
        folder: The working folder, for calls that name no other.
    """
    trace = Trace()
    for line in lines:
        call = _CALL.match(line)
        if call is None:
            continue
        name, rest = call["name"], call["rest"]
        if name in _SOCKETS:
            found = {
                Address(match["four"] or match["six"], int(match["port"]))
                for match in _INTERNET.finditer(rest)
            }
            (trace.bound if name == "bind" else trace.reached).update(found)
            if name == "connect":
                trace.local.update(match["path"] for match in _UNIX.finditer(rest))
        elif _succeeded(rest):
            if name == "chdir":
                (folder,) = _paths(rest, folder)
            elif name in _FILES and (not name.startswith("open") or _WRITES.search(rest)):
                trace.written.update(_paths(rest, folder))
    return trace


def _succeeded(rest: str) -> bool:
    answers = _ANSWER.findall(rest)
    return bool(answers) and not answers[-1].startswith("-")


def _paths(rest: str, folder: Path) -> Iterator[Path]:
    """Yield the paths of a call, each in the folder that precedes it."""
    *_, end = _ANSWER.finditer(rest)
    at = 0
    for string in _STRING.finditer(rest, 0, end.start()):
        before = _FOLDER.search(rest, at, string.start())
        at = string.end()
        base = Path(_unescaped(before["path"])) if before else folder
        yield Path(os.path.normpath(base / _unescaped(string[1])))


def _unescaped(text: str) -> str:
    """Read a path as strace writes it, its bytes beyond ASCII in octal."""
    escaped = text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    return escaped.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


def trace(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], notes: Path, timeout: float = 900
) -> tuple[subprocess.CompletedProcess[str], Trace]:
    """Run a command to its end; return its result, and what it did.

    Args:
        command: Program and arguments.
        cwd: Its working folder.
        env: Its whole environment.
        notes: A folder for strace's own files, which is made.
        timeout: Seconds after which it is killed.
    """
    notes.mkdir()
    calls = ",".join(f"?{name}" for name in (*_SOCKETS, *_FILES, "chdir"))
    options = ["-ff", "-qq", "-y", "-s", "4096", "-o", f"{notes}/thread", "-e", f"trace={calls}"]
    done = subprocess.run(
        ["strace", *_fast(), *options, "--", *command],
        cwd=cwd,
        env=env,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
    )
    whole = Trace()
    for path in notes.iterdir():
        text = path.read_text("utf-8", "replace")
        part = read(text.splitlines(), cwd)
        for name in ("reached", "bound", "local", "written"):
            getattr(whole, name).update(getattr(part, name))
        whole.text += text
    return done, whole


@cache
def why_not() -> str | None:
    """Return why tracing is not possible here; ``None`` if it is."""
    if shutil.which("strace") is None:
        return "there is no strace here: apt-get install strace"
    tried = _try()
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else None


@cache
def _fast() -> list[str]:
    """Run system calls that are not traced at full speed, if strace and kernel support it."""
    option = ["-f", "--seccomp-bpf"]
    return [] if _try(*option).returncode else option


def _try(*options: str) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-qq", *options, "-e", "trace=chdir", "true"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
