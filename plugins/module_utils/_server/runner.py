# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Where a client program (``lxc`` or ``incus``) runs: here as a process, or in an instance of another server."""

from __future__ import annotations

import errno
import io
import os
import selectors
import shutil
import subprocess
import typing as t

from .._errors import ServerError, ServerUnreachable
from .command import LINGERING, PATIENCE, TAIL, Ended, Gate, too_long
from .driver import Completed
from .sockets import Deadline

CHUNK = 1 << 16
CLIENTS = ("lxc", "incus")
# A user's remotes, aliases and default project must not change what a command means. Nobody can make that folder.
_NO_CONFIGURATION = "/proc/mage.lxd"
# Who says by the instance's environment which server is meant means its client, too.
_FIND = """
case ${LXD_SOCKET:-${INCUS_SOCKET:-${LXD_DIR:-$INCUS_DIR}}} in
    */lxd*) clients=lxc ;;
    */incus*) clients=incus ;;
    *) clients="lxc incus" ;;
esac
for client in $clients; do
    command -v "$client" >/dev/null 2>&1 && "$client" --force-local query /1.0 >/dev/null 2>&1 && echo "$client"
done
exit 0
"""

Source = t.Union[bytes, t.BinaryIO]


class Runner(t.Protocol):
    """Runs a client program, whatever its exit code. ``argv[0]`` is ``lxc`` or ``incus``."""

    def run(
        self,
        argv: t.Sequence[str],
        stdin: Source = b"",
        output: t.Optional[t.BinaryIO] = None,
        timeout: t.Optional[float] = None,
        gate: t.Optional[Gate] = None,
        ended: t.Optional[Ended] = None,
    ) -> Completed:
        """Run it to its end. Standard output goes to ``output`` if that is given. ``ended``: see ``exec.Ended``.

        Raises DeadlinePassed after ``timeout`` seconds, having ended it; ServerUnreachable where it cannot run.
        """

    def close(self) -> None:
        """Let go of what the runner holds."""


class Executor(t.Protocol):
    """What an ExecRunner needs of the outer server's driver."""

    @property
    def endpoint(self) -> str:
        """Where the outer server is."""

    def execute(
        self,
        instance: str,
        argv: t.Sequence[str],
        project: str = "default",
        stdin: Source = b"",
        environment: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
        user: t.Optional[int] = None,
        group: t.Optional[int] = None,
        cwd: t.Optional[str] = None,
        gate: t.Optional[Gate] = None,
        ended: t.Optional[Ended] = None,
        output: t.Optional[t.BinaryIO] = None,
    ) -> Completed:
        """Run a command in an instance."""

    def close(self) -> None:
        """Let go of every connection."""


class LocalRunner:
    """Runs the client on this machine, against a local socket."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path

    def run(
        self,
        argv: t.Sequence[str],
        stdin: Source = b"",
        output: t.Optional[t.BinaryIO] = None,
        timeout: t.Optional[float] = None,
        gate: t.Optional[Gate] = None,
        ended: t.Optional[Ended] = None,
    ) -> Completed:
        """See ``Runner``."""
        environment = {
            "PATH": search_path(),
            "HOME": os.environ.get("HOME") or "/",
            "LXD_SOCKET": self.socket_path,
            "INCUS_SOCKET": self.socket_path,
            "LXD_CONF": _NO_CONFIGURATION,
            "INCUS_CONF": _NO_CONFIGURATION,
        }
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                bufsize=0,
                # What interrupts us is for us to answer.
                start_new_session=True,
            )
        except OSError as e:
            if e.errno == errno.E2BIG:
                raise too_long("this machine's kernel does not take so many words") from e
            raise ServerUnreachable(f"unix://{self.socket_path}", f"cannot run {argv[0]}: {e.strerror}") from e
        try:
            with _Pipes(process, stdin, output, gate, ended) as pipes:
                return pipes.loop(Deadline(timeout, f"{argv[0]} {argv[1] if len(argv) > 1 else ''}".strip()))
        finally:
            # Where the client is gone, the server kills the command that it ran.
            process.kill()
            process.wait()

    def close(self) -> None:
        """See ``Runner``."""


class _Pipes:
    """Moves bytes between a process and us in one loop, a chunk at a time."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stdin: Source,
        output: t.Optional[t.BinaryIO],
        gate: t.Optional[Gate],
        ended: t.Optional[Ended],
    ) -> None:
        self._process = process
        self._stdin: t.Optional[t.BinaryIO] = io.BytesIO(stdin) if isinstance(stdin, (bytes, bytearray)) else stdin
        self._output = output
        self._gate = gate
        self._ended = ended
        self._unsent = b""
        self._seen = {"stdout": bytearray(), "stderr": bytearray()}
        self._open = {"stdout": process.stdout, "stderr": process.stderr}

    def __enter__(self) -> _Pipes:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
        return self

    def __exit__(self, *_exception: t.Any) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def loop(self, deadline: Deadline) -> Completed:
        """Until both outputs have ended and the process has, too."""
        while self._open:
            self._prepare()
            with selectors.DefaultSelector() as selector:
                for name, pipe in self._open.items():
                    selector.register(t.cast(t.IO[bytes], pipe), selectors.EVENT_READ, name)
                if self._unsent and self._process.stdin:
                    selector.register(self._process.stdin, selectors.EVENT_WRITE, "stdin")
                ready = {key.data for key, _events in selector.select(self._patience(deadline))}
            if not ready and self._has_ended():
                return self._completed(0)
            if "stdin" in ready:
                self._send()
            for name in ready - {"stdin"}:
                self._receive(name)
        while True:
            try:
                rc = self._process.wait(self._patience(deadline))
            except subprocess.TimeoutExpired:
                if self._has_ended():
                    return self._completed(0)
                continue
            return self._completed(128 - rc if rc < 0 else rc)

    def _completed(self, rc: int) -> Completed:
        return Completed(rc, bytes(self._seen["stdout"]), bytes(self._seen["stderr"]))

    def _has_ended(self) -> bool:
        tails = (bytes(self._seen[name][-TAIL:]) for name in ("stdout", "stderr"))
        return self._ended is not None and self._ended(*tails)

    def _patience(self, deadline: Deadline) -> t.Optional[float]:
        """How long to wait for more."""
        left = deadline.remaining()
        if self._gate is not None:
            left = PATIENCE if left is None else min(PATIENCE, left)
        if self._ended is None:
            return left
        return LINGERING if left is None else min(LINGERING, left)

    def _prepare(self) -> None:
        """Have the next piece of stdin at hand; close it after the last."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        if self._gate is not None:
            opened, answer = self._gate(bytes(self._seen["stdout"]), bytes(self._seen["stderr"]))
            self._unsent += answer
            if not opened:
                return
            self._gate = None
        if self._unsent:
            return
        self._unsent = self._stdin.read(CHUNK) if self._stdin else b""
        if not self._unsent:
            self._process.stdin.close()

    def _send(self) -> None:
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            return
        try:
            self._unsent = self._unsent[os.write(pipe.fileno(), self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            # Nobody reads it any more, which is the command's right.
            self._unsent, self._stdin, self._gate = b"", None, None
            pipe.close()

    def _receive(self, name: str) -> None:
        pipe = self._open[name]
        try:
            data = os.read(pipe.fileno(), CHUNK) if pipe else b""
        except BlockingIOError:
            return
        if not data:
            del self._open[name]
        elif name == "stdout" and self._output is not None:
            self._output.write(data)
        else:
            self._seen[name] += data


class ExecRunner:
    """Runs the client in an instance of another server: it leads to the server that is nested there."""

    def __init__(self, outer: Executor, instance: str, project: str) -> None:
        self.outer = outer
        self.instance = instance
        self.project = project

    def run(
        self,
        argv: t.Sequence[str],
        stdin: Source = b"",
        output: t.Optional[t.BinaryIO] = None,
        timeout: t.Optional[float] = None,
        gate: t.Optional[Gate] = None,
        ended: t.Optional[Ended] = None,
    ) -> Completed:
        """See ``Runner``."""
        environment = {"LXD_CONF": _NO_CONFIGURATION, "INCUS_CONF": _NO_CONFIGURATION}
        try:
            return self.outer.execute(
                self.instance,
                argv,
                self.project,
                stdin,
                environment,
                timeout,
                cwd="/",
                gate=gate,
                ended=ended,
                output=output,
            )
        except ServerError as e:
            # What is missing or stopped is the way to the server, not what was asked of it.
            raise ServerUnreachable(f"{self.outer.endpoint} via {self.instance}", e.message) from e

    def close(self) -> None:
        """See ``Runner``: the outer driver is held."""
        self.outer.close()


def local_client(flavor: str = "") -> t.Optional[str]:
    """The client program on this machine: that of the server's flavor (lxd, incus), else any, or None."""
    wanted = {"lxd": ("lxc",), "incus": ("incus",)}.get(flavor, CLIENTS)
    return next((name for name in wanted if shutil.which(name, path=search_path())), None)


def search_path() -> str:
    """Where programs are: the snap's, too, which a non-interactive shell leaves out."""
    return (os.environ.get("PATH") or os.defpath) + ":/snap/bin"


def find_clients(outer: Executor, instance: str, project: str, timeout: float = 60.0) -> list[str]:
    """The client programs in an instance whose servers answer there."""
    found = outer.execute(instance, ["sh", "-c", _FIND], project, timeout=timeout).stdout.decode().split()
    return [name for name in found if name in CLIENTS]
