# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Commands in an instance, by the client's ``exec``."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import shlex
import threading
import time
import typing as t

from .._errors import DeadlinePassed, InvalidInput, MageError, ServerError
from .._values import show
from .command import GRACE, MARK, Command, Ended, Gate
from .driver import Completed
from .runner import Runner

_SIGNALS = 128
_LOST = b"Error: the connection was lost before a command's whole output came: unexpected EOF"
# What the client adds to the stderr of a command with such an exit code.
_NO_SHELL = 127
_ADDED = {_NO_SHELL: b"Error: Command not found\n", 126: b"Error: Command not executable\n"}
# A client that fails itself exits with 1; where a command was cut off, with 255.
_OWN_FAILURES = (1, 255)
_SAYS_ERROR = re.compile(rb"^Error: ", re.MULTILINE)
# Variables that hold no secret, and may stand on a command line.
_USUAL = re.compile(r"HOME|USER|LOGNAME|SHELL|PATH|TERM|LANG|LANGUAGE|LC_[A-Z]+|PWD|DEBIAN_FRONTEND|(LXD|INCUS)_CONF")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# Says on both streams that they are up, waits for a line, which may set variables, runs the command, and tells its
# exit code on both. Without the beginning, clients (LXD 5.0, Incus 6.0) lose the output of one in fifty short commands;
# without the end, that of some that exit with 126 or 127. read takes no byte more than the line. Its name is the sign,
# so that what the shell itself says of a command that it cannot run is known by its beginning.
_WRAPPER = """echo "$0"; echo "$0" >&2
mage_nl='
'
IFS= read -r mage_line || exit 125
exec 3>&2 2>/dev/null
( eval "$mage_line"; case $1 in ''|-*) exit 127 ;; esac; exec 2>&3 3>&-; exec "$@" )
rc=$?; echo "$0 $rc"; echo "$0 $rc" >&3; exit 0
"""
# How long a killed command is waited for, where its client did not wait.
_FATE = 10.0


def run(
    runner: Runner,
    client: t.Sequence[str],
    command: Command,
    operations: t.Callable[[], t.Any],
    failed: t.Callable[[bytes], MageError],
) -> Completed:
    """Run a command to its end. ``operations`` reads the server's; ``failed`` is the error for what the client said.

    Raises DeadlinePassed after having killed the command.
    """
    if command.timeout is None:
        return _attempt(runner, client, command, None, operations, failed)
    killer = _Killer(runner, client, command)
    try:
        # Where no shell kills from inside, the server kills what the client ran when that is gone.
        done = _attempt(runner, client, command, command.timeout + GRACE, operations, failed)
    except (DeadlinePassed, ServerError) as e:
        if killer.stop():
            raise _passed(command, _is_gone(command, operations)) from e
        raise
    finally:
        was_late = killer.stop()
    if was_late:
        raise _passed(command, True)
    return done


class _Killer:
    """Kills a command inside when its time is up, unless it is stopped before."""

    def __init__(self, runner: Runner, client: t.Sequence[str], command: Command) -> None:
        self._has_begun = False
        self._work = (runner, client, command)
        self._timer = threading.Timer(command.timeout or 0.0, self._kill)
        self._timer.daemon = True
        self._timer.start()

    def _kill(self) -> None:
        self._has_begun = True
        _kill_all(*self._work)

    def stop(self) -> bool:
        """Whether it has begun."""
        self._timer.cancel()
        self._timer.join()
        return self._has_begun


def _passed(command: Command, killed: bool) -> DeadlinePassed:
    what = f"{command.instance}: {' '.join(command.argv)[:200]}"
    fate = "killed" if killed else "it did not even end when killed"
    return DeadlinePassed(f"{what}: not done after {command.timeout:g} s; {fate}")


def _is_gone(command: Command, operations: t.Callable[[], t.Any]) -> bool:
    """Whether a command is known to have ended, at once or in a moment."""
    end = time.monotonic() + _FATE
    with contextlib.suppress(MageError):
        while _runs(command, operations):
            if time.monotonic() > end:
                return False
            time.sleep(_FATE / 20)
        return True
    return False


def _runs(command: Command, operations: t.Callable[[], t.Any]) -> bool:
    """Whether the server still runs a command. Raises MageError."""
    running = (operations() or {}).get("running") or ()
    return any(_mark_of(operation) == command.mark for operation in running)


def _mark_of(operation: t.Mapping[str, t.Any]) -> t.Any:
    return ((operation.get("metadata") or {}).get("environment") or {}).get(MARK)


def _attempt(
    runner: Runner,
    client: t.Sequence[str],
    command: Command,
    timeout: t.Optional[float],
    operations: t.Callable[[], t.Any],
    failed: t.Callable[[bytes], MageError],
) -> Completed:
    usual = {name: value for name, value in command.environment.items() if _USUAL.fullmatch(name)}
    others = {name: value for name, value in command.environment.items() if name not in usual}
    frame = _Frame(variables(others), command, lambda: _runs(command, operations))
    argv = ["/bin/sh", "-c", _WRAPPER, frame.sign, *command.argv]
    try:
        wrapped = dataclasses.replace(command, argv=argv, environment=usual, gate=frame, output=frame.sink)
        done = _start(runner, client, wrapped, timeout, frame.has_ended)
    except BaseException:
        # With the client gone, the server kills the wrapper alone.
        _kill_all(runner, client, command)
        raise
    if frame.has_begun:
        return frame.completed(done, failed)
    if done.rc != _NO_SHELL or _ADDED[_NO_SHELL] not in done.stderr:
        raise failed(done.stderr)
    if others:
        told = f"{command.instance} has no shell, and without one {client[0]} would show the environment to everybody"
        raise ServerError(501, told, f"exec {command.instance}")
    return _direct(_start(runner, client, command, timeout), command, operations, failed)


def _kill_all(runner: Runner, client: t.Sequence[str], command: Command) -> None:
    with contextlib.suppress(MageError):
        # An instance without a shell keeps what the command left.
        _start(runner, client, command.killer(), GRACE)


def _start(
    runner: Runner,
    client: t.Sequence[str],
    command: Command,
    timeout: t.Optional[float],
    ended: t.Optional[Ended] = None,
) -> Completed:
    words = [*client, "exec", "--mode", "non-interactive", "--project", command.project]
    for flag, value in (("--user", command.user), ("--group", command.group), ("--cwd", command.cwd)):
        words += [] if value is None else [flag, str(value)]
    for name, value in {**command.environment, MARK: command.mark}.items():
        words += ["--env", f"{name}={value}"]
    words += ["--", f"local:{command.instance}", *command.argv]
    return runner.run(words, command.stdin, command.output, timeout, command.gate, ended)


def variables(environment: t.Mapping[str, str]) -> bytes:
    """The line of shell that sets variables. Raises InvalidInput."""
    words = []
    for name, value in environment.items():
        if not _NAME.fullmatch(name) or "\0" in value:
            raise InvalidInput(
                [f"environment: {show(name)}: is no name that a shell can set, or its value holds a NUL"]
            )
        words.append(f"{name}=" + shlex.quote(value).replace("\n", "'\"$mage_nl\"'"))
    line = "export " + " ".join(words) if words else ":"
    return line.encode("utf-8", "surrogateescape") + b"\n"


class _Sink:
    """Hands a command's output on as it comes, without what stands around it. That is kept in ``head`` and ``tail``."""

    def __init__(self, output: t.BinaryIO, begin: bytes, end: bytes) -> None:
        self.head = b""
        self.tail = b""
        self._output = output
        self._begin, self._end = begin, end
        self._held = b""

    def write(self, data: bytes) -> int:
        """Take the next piece."""
        self._held += bytes(data)
        if not self.head:
            before, self.head, after = self._held.partition(self._begin)
            self._held = after if self.head else before
        if self.head:
            self._hand_on()
        return len(data)

    def _hand_on(self) -> None:
        if not self.tail:
            before, end, after = self._held.partition(self._end)
            # The rest may be the first half of the end.
            size = len(before) if end else max(0, len(before) - len(self._end))
            self._output.write(before[:size])
            self.tail, self._held = end, after if end else before[size:]
        if self.tail:
            self.tail, self._held = self.tail + self._held, b""

    def rest(self) -> bytes:
        """The end, where it has come, else what was held back for it."""
        return self.tail or self._held


class _Frame:
    """What stands around a command's output, by the wrapper. As a gate it holds all back until the command begins.

    ``runs`` says whether the server still runs the command, once that has told its end.
    """

    def __init__(self, answer: bytes, command: Command, runs: t.Callable[[], bool]) -> None:
        self.sign = f"mage-{secrets.token_hex(8)}"
        self.has_begun = False
        self._begin = self.sign.encode("ascii") + b"\n"
        self._end = self.sign.encode("ascii") + b" "
        self._whole_end = re.compile(re.escape(self._end) + rb"\d+\n")
        self._shell = self.sign.encode("ascii") + b":"
        self._sink = _Sink(command.output, self._begin, self._end) if command.output is not None else None
        self._command_output = command.output
        self._runs = runs
        self._is_gone = False
        self._answer = answer
        self._gate: t.Optional[Gate] = command.gate
        self._ended: t.Optional[Ended] = command.ended

    @property
    def sink(self) -> t.Optional[t.BinaryIO]:
        """Where the client's standard output goes, if the command's goes somewhere."""
        return t.cast("t.Optional[t.BinaryIO]", self._sink)

    def __call__(self, stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        """See ``exec.Gate``."""
        if self._sink is not None:
            stdout = self._sink.head
        if not self.has_begun and (self._begin not in stdout or self._begin not in stderr):
            return False, b""
        self.has_begun = True
        flows, answer = self._gate(self._after(stdout), self._after(stderr)) if self._gate else (True, b"")
        first, self._answer = self._answer, b""
        return flows, first + answer

    def _after(self, output: bytes) -> bytes:
        return output.partition(self._begin)[2]

    def has_ended(self, stdout: bytes, stderr: bytes) -> bool:
        """See ``exec.Ended``."""
        if self._ended is not None and self._ended(stdout, stderr):
            return True
        if self._sink is not None:
            stdout = self._sink.tail
        if not all(self._whole_end.search(output) for output in (stdout, stderr)):
            return False
        if self._is_gone:
            return True
        try:
            # What the command left may hold its output open, which the server then waits for.
            self._is_gone = not self._runs()
        except MageError:
            self._is_gone = True
        # What came while that was asked is still on its way: one more silent moment.
        return False

    def completed(self, done: Completed, failed: t.Callable[[bytes], MageError]) -> Completed:
        """What the command did, or the exception for what the client says of itself. Raises ServerUnreachable."""
        output = self._after(done.stdout) if self._sink is None else self._sink.rest()
        stdout, end, code = output.rpartition(self._end)
        stderr, other_end, other_code = self._after(done.stderr).rpartition(self._end)
        if end and other_end:
            # What runs on in the background may have written something after the end.
            rc, _newline, late = code.partition(b"\n")
            if int(rc) in _ADDED and stderr.startswith(self._shell):
                stderr = b""
            return self._handed_on(Completed(int(rc), stdout + late, stderr + other_code.partition(b"\n")[2]))
        if done.rc > _SIGNALS:
            # Killed together with its wrapper: the instance is going down.
            return self._handed_on(Completed(done.rc, stdout + code, stderr + other_code))
        if self._ended is not None and self._ended(code, other_code):
            return self._handed_on(Completed(0, code, other_code))
        raise failed(other_code or _LOST)

    def _handed_on(self, done: Completed) -> Completed:
        """What was done, with the last of its output where all the rest is."""
        if self._command_output is None:
            return done
        self._command_output.write(done.stdout)
        return done._replace(stdout=b"")


def _direct(
    done: Completed,
    command: Command,
    operations: t.Callable[[], t.Any],
    failed: t.Callable[[bytes], MageError],
) -> Completed:
    """What a command without the wrapper did, or the exception for what the client says of itself.

    Both may exit with 1 and write ``Error: …``. The operation, marked by the command's environment, tells them apart.
    """
    added = _ADDED.get(done.rc)
    if added and done.stderr.endswith(added):
        return done._replace(stderr=done.stderr[: -len(added)])
    if done.rc not in _OWN_FAILURES or not _SAYS_ERROR.search(done.stderr):
        return done
    for operation in _flat(operations()):
        if _mark_of(operation) != command.mark:
            continue
        if (operation.get("metadata") or {}).get("return") == done.rc:
            return done
        raise failed(str(operation.get("err") or "").encode() or done.stderr)
    raise failed(done.stderr)


def _flat(operations: t.Any) -> t.Iterator[t.Mapping[str, t.Any]]:
    """Every operation of a listing, which is by state."""
    for some in (operations or {}).values():
        yield from some
