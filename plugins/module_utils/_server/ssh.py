# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Servers behind SSH: OpenSSH forwards a local socket to the host's own. One master serves all processes of a user."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import os
import shlex
import socket
import stat
import subprocess
import tempfile
import time
import typing as t
import urllib.parse

from .._errors import ServerUnreachable
from . import bridge, lookup, mux, sockets
from .options import ServerOptions

# Seconds that a master stays after its last connection, and for which a way that was tried is taken to be good.
PERSIST = 60
FRESH = 5.0
# An AF_UNIX path has at most 107 bytes, and ssh appends 17 to a ControlPath while it makes it.
_LONGEST_FOLDER = 107 - 17 - len("/0123456789abcdef.m")
_bridges = bridge.Registry()


@dataclasses.dataclass(frozen=True)
class Place:
    """The host, as ssh takes it, and the files of ours that belong to it."""

    host: str
    login: tuple[str, ...]
    socket: str
    arguments: tuple[str, ...]
    base: str

    @property
    def master(self) -> str:
        """ssh's control socket."""
        return self.base + ".m"

    @property
    def local(self) -> str:
        """The socket that leads to the server."""
        return self.base + ".s"

    def ssh(self, *words: str) -> list[str]:
        """An ssh command over the master. Of an option that is given twice, ssh takes the first."""
        ours = ("-o", f"ControlPath={self.master}", "-o", "BatchMode=yes")
        return ["ssh", *ours, *self.arguments, *words, *self.login, "--", self.host]


def connect(options: ServerOptions) -> socket.socket:
    """A socket to the server. Raises ServerUnreachable, OSError."""
    place = place_of(options)
    same = dataclasses.replace(options, project="default", driver="auto")
    if _bridges.serves(same):
        return _bridges.socket(same, lambda: _made(place, same))
    found = _ready(place, options.connect_timeout)
    if found is not None:
        return found
    with _locked(place, options):
        # Somebody else may have made it meanwhile.
        return _ready(place, options.connect_timeout) or _made(place, same)


def leave(options: ServerOptions) -> None:
    """Have the next connection log in anew. Those that are there keep their master, which goes with the last of them.

    Raises ServerUnreachable.
    """
    place = place_of(options)
    with _locked(place, options):
        _end(place, "stop")


def place_of(options: ServerOptions) -> Place:
    """The host of an endpoint, and our files for it."""
    url = urllib.parse.urlsplit(options.endpoint)
    user = ("-l", urllib.parse.unquote(url.username)) if url.username else ()
    port = ("-p", str(url.port)) if url.port else ()
    arguments = tuple(shlex.split(options.ssh_args))
    path = urllib.parse.unquote(url.path) if url.path != "/" else ""
    # Whose agent, configuration and known hosts count, is the same for all that one user does.
    name = hashlib.sha256("\0".join((options.endpoint, *arguments)).encode()).hexdigest()[:16]
    # As it was written: names in the user's configuration have capitals.
    authority = url.netloc.rpartition("@")[2]
    start = authority.lower().find(url.hostname or "")
    host = authority[start : start + len(url.hostname or "")]
    return Place(host, (*user, *port), path, arguments, os.path.join(_folder(options), name))


def _folder(options: ServerOptions) -> str:
    """A folder that no other user can enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    wanted = [os.path.join(os.path.expanduser("~"), ".ansible", "mage-lxd"), f"/tmp/mage-lxd-{os.getuid()}"]
    if runtime and os.path.isdir(runtime) and os.access(runtime, os.W_OK):
        wanted.insert(0, os.path.join(runtime, "mage-lxd"))
    for folder in wanted:
        if len(os.fsencode(folder)) > _LONGEST_FOLDER:
            continue
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            found = os.lstat(folder)
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
            return folder
    told = f"there is no folder for its sockets that is this user's alone (tried {', '.join(wanted)})"
    raise ServerUnreachable(options.shown, told)


@contextlib.contextmanager
def _locked(place: Place, options: ServerOptions) -> t.Iterator[None]:
    """One process at a time makes the way. Hosts share a few locks, so that no file is left for each."""
    folder, name = os.path.split(place.base)
    end = time.monotonic() + 3 * options.connect_timeout + options.request_timeout
    with open(os.path.join(folder, f"lock-{name[0]}"), "w", encoding="ascii") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise ServerUnreachable(options.shown, "another process is still connecting to it") from None
                time.sleep(0.02)
        yield


def _ready(place: Place, timeout: float) -> t.Optional[socket.socket]:
    """A socket to the server, if the way is there and something answers at its end."""
    try:
        return _tried(place, timeout)
    except TimeoutError:
        # The line may be long dead.
        return None


def _tried(place: Place, timeout: float) -> t.Optional[socket.socket]:
    """A socket to the server, if the way is there and leads to it. Raises TimeoutError if nothing answers.

    ssh takes every connection before it knows whether the host does: so now and then one is asked for a sign of life.
    """
    try:
        sock = sockets.connect_unix(place.local, timeout)
    except OSError:
        return None
    try:
        if time.time() - os.stat(place.base + ".ok").st_mtime < FRESH:
            return sock
    except OSError:
        # Nobody has tried it yet.
        pass
    alive = False
    try:
        alive = _alive(sock)
    finally:
        if not alive:
            sock.close()
    if not alive:
        return None
    with open(place.base + ".ok", "w", encoding="ascii"):
        os.utime(place.base + ".ok")
    return sock


def _alive(sock: socket.socket) -> bool:
    """Whether a server answers on the socket, which can be used afterwards. Raises TimeoutError."""
    asked = http.client.HTTPConnection("localhost")
    asked.sock = sock
    try:
        asked.request("GET", "/")
        answer = http.client.HTTPResponse(sock, method="GET")
        answer.begin()
        answer.read()
    except (TimeoutError, socket.timeout) as e:
        raise TimeoutError("no answer in time") from e
    except (OSError, http.client.HTTPException):
        return False
    return not answer.will_close


def _made(place: Place, options: ServerOptions) -> socket.socket:
    """Find the server on the host, and make the way there. Raises ServerUnreachable."""
    answer = _asked(place, options)
    lookup.check(answer, options, place.host)
    if answer.word == "sudo":
        return _bridges.socket(options, lambda: bridge.joined(SudoTrunk(place, answer.rest), options, place.host))
    for _attempt in range(2):
        _forward(place, answer.rest, options)
        # The line is good: a server that is busy has as long as for any request.
        found = _tried(place, options.request_timeout)
        if found is not None:
            return found
        # The master believes that it forwards already, although the socket is gone; or the server's socket is another.
        _end(place)
        answer = _asked(place, options)
        lookup.check(answer, options, place.host)
    _end(place)
    told = f"ssh does not forward {answer.rest}: does AllowStreamLocalForwarding in the host's sshd_config forbid it?"
    raise ServerUnreachable(options.shown, told)


def _asked(place: Place, options: ServerOptions) -> lookup.Answer:
    """What the host says of its server. Starts the master, if there is none that answers."""
    seconds = options.connect_timeout
    master = ["ControlMaster=auto", f"ControlPersist={PERSIST}", f"ConnectTimeout={max(1, int(seconds))}"]
    master += ["ServerAliveInterval=10", "ServerAliveCountMax=3", "ClearAllForwardings=yes", "RemoteCommand=none"]
    words = [word for one in master for word in ("-o", one)]
    script = shlex.join(lookup.command(lookup.FIND, place.socket))
    argv = [*place.ssh("-T", "-a", "-x", *words), script]
    try:
        rc, output, told = _run(argv, seconds + 2, options)
    except subprocess.TimeoutExpired:
        # Perhaps it is only the master that hangs, on a line that is long dead.
        _end(place)
        try:
            rc, output, told = _run(argv, seconds + 2, options)
        except subprocess.TimeoutExpired:
            raise ServerUnreachable(options.shown, "no answer in time") from None
    answer = lookup.first_line(output)
    if rc == 255 or answer is None:
        raise ServerUnreachable(options.shown, _words(told) or f"the host's shell ended with exit code {rc}")
    return answer


def _forward(place: Place, remote: str, options: ServerOptions) -> None:
    """Have the master forward the local socket to the server's."""
    for path in (place.local, place.base + ".ok"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    # Both are split at colons.
    local = place.local.replace(":", "\\:")
    what = ("-L", f"{local}:{remote.replace(':', chr(92) + ':')}")
    try:
        # A master that forwards it already makes no new socket. What others have open goes on.
        _run(place.ssh("-O", "cancel", *what), options.connect_timeout, options)
        rc, _output, told = _run(place.ssh("-O", "forward", *what), options.connect_timeout, options)
    except subprocess.TimeoutExpired:
        raise ServerUnreachable(options.shown, "ssh did not forward its socket in time") from None
    if rc != 0:
        raise ServerUnreachable(options.shown, _words(told) or "ssh does not forward its socket")


def _end(place: Place, how: str = "exit") -> None:
    """End the master, with all that it forwards; by "stop", only when nobody needs it any more."""
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        subprocess.run(place.ssh("-O", how), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=2)
    for path in (place.master, place.local, place.base + ".ok"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _run(argv: t.Sequence[str], timeout: float, options: ServerOptions) -> tuple[int, bytes, str]:
    """Run ssh: its exit code, output and words. By files, since a master keeps the pipes of what started it."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as told:
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=told,
                check=False,
                timeout=timeout,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise ServerUnreachable(options.shown, "there is no program ssh on this machine") from None
        output.seek(0)
        told.seek(0)
        return done.returncode, output.read(), told.read().decode("utf-8", "replace")


def _words(told: str) -> str:
    """ssh's own last line, and what to do about it where that is not said."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    last = lines[-1].rstrip(".") if lines else ""
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in told:
        return f"ssh: {last}: its host key is another than the known one"
    if last.startswith("Host key verification failed"):
        return f"ssh: {last}: its host key is not known yet; connect once by hand, or name it in ssh_args"
    return f"ssh: {last.removeprefix('ssh: ')}" if last else ""


class SudoTrunk(mux.Pipes):
    """The pipes of a bridge that root runs on the host: for a user who may use sudo, but not the socket."""

    def __init__(self, place: Place, path: str) -> None:
        argv = [*place.ssh("-T", "-a", "-x"), shlex.join(lookup.command(lookup.BRIDGE, path))]
        self._errors, name = tempfile.mkstemp()
        os.unlink(name)
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise EOFError("ssh has no pipes")
        super().__init__(self._process.stdout.fileno(), self._process.stdin.fileno())

    @property
    def told(self) -> str:
        """What ssh, or the far end, said."""
        return _words(os.pread(self._errors, 1 << 16, 0).decode("utf-8", "replace"))

    def end(self) -> None:
        """Tell the far end that no more comes."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def close(self) -> None:
        """End the command: the far end goes when its standard input ends."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._errors)
