# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a command in an instance is, and what may watch it, whichever driver runs it."""

from __future__ import annotations

import dataclasses
import secrets
import typing as t

from .._errors import InvalidInput
from .._values import show

# How long the killer has, and then a killed command to end.
GRACE = 10.0
# Marks a command with a deadline and what it starts, so that all of it can be found and killed.
MARK = "MAGE_COMMAND"
# Kills what has $1 in its environment, and its descendants: sudo, for one, does not hand the environment on. Then what
# these have started meanwhile.
_KILL_ALL = """
for round in 1 2 3 4 5; do
    found=" "
    for folder in /proc/[0-9]*; do
        grep -qs "MAGE_COMMAND=$1" "$folder/environ" && found="$found${folder#/proc/} "
    done
    [ "$found" != " " ] || break
    before=
    while [ "$found" != "$before" ]; do
        before=$found
        for folder in /proc/[0-9]*; do
            pid=${folder#/proc/} parent=
            while read -r key value; do
                if [ "$key" = PPid: ]; then parent=$value; break; fi
            done <"$folder/status"
            case "$found" in *" $pid "*) continue ;; *" $parent "*) found="$found$pid " ;; esac
        done 2>/dev/null
    done
    kill -9 $found
done
"""


class Gate(t.Protocol):
    """Holds a command's stdin back, and speaks to its prompts instead, until it lets go."""

    def __call__(self, stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        """From all output so far: whether stdin may flow now, and what to send before. May raise.

        Asked at each output, and after every second without any.
        """


# Says, from the ends of stdout and stderr, that all of a command's output has come. One that stays nevertheless is not
# waited for: the client of LXD 5.0 sometimes does. Asked after each second in which nothing has come.
Ended = t.Callable[[bytes, bytes], bool]
LINGERING = 1.0
# What a kernel takes as one word of a command.
LONGEST_WORD = (1 << 17) - 1
# Seconds after which a gate is asked again.
PATIENCE = 1.0
TAIL = 4096


@dataclasses.dataclass(frozen=True)
class Command:
    """What to run. ``stdin`` is bytes or an open binary file; None for user, group and cwd means root in /root.

    Standard output goes to ``output`` if that is given. Raises InvalidInput for what no kernel would run, and for what
    would arrive as something else.
    """

    instance: str
    argv: t.Sequence[str]
    project: str = "default"
    stdin: t.Union[bytes, t.BinaryIO] = b""
    environment: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    user: t.Optional[int] = None
    group: t.Optional[int] = None
    cwd: t.Optional[str] = None
    timeout: t.Optional[float] = None
    gate: t.Optional[Gate] = None
    ended: t.Optional[Ended] = None
    output: t.Optional[t.BinaryIO] = None
    mark: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        if not self.argv:
            raise InvalidInput(["command: must have a word at least"])
        for word in self.argv:
            size = len(_sent("command", word))
            if size > LONGEST_WORD:
                raise too_long(f"{size} bytes in one word, and {LONGEST_WORD} are the most")
            if "\0" in word:
                raise InvalidInput([f"command: {show(word)}: must not hold a NUL"])
        for word in (*self.environment, *self.environment.values()):
            _sent("environment", word)
        _sent("cwd", self.cwd or "")

    def body(self) -> dict[str, t.Any]:
        """The request's body."""
        body: dict[str, t.Any] = {
            "command": list(self.argv),
            "environment": {**self.environment, **({MARK: self.mark} if self.timeout is not None else {})},
            "wait-for-websocket": True,
            "interactive": False,
        }
        options = {"user": self.user, "group": self.group, "cwd": self.cwd}
        return {**body, **{key: value for key, value in options.items() if value is not None}}

    def killer(self) -> Command:
        """The command that kills this one with all that it has started, where the instance has a shell."""
        argv = ["sh", "-c", _KILL_ALL, "sh", self.mark]
        return Command(self.instance, argv, self.project, cwd="/")


def _sent(path: str, text: str) -> bytes:
    """The text as a server gets it. Raises InvalidInput for what it would make another text of without a word."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as e:
        near = text[max(0, e.start - 30) : e.end + 30]
        raise InvalidInput([f"{path}: {show(near)}: must be UTF-8, a server takes nothing else"]) from e


def too_long(reason: str) -> InvalidInput:
    """The exception for a command that no kernel takes."""
    return InvalidInput([f"command: it is too long: {reason}"])
