# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SFTP with a server that gives less at once, or in another order, than the ones that the tests have."""

from __future__ import annotations

import io
import select
import socket
import struct
import threading
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import sftp

CONTENT = bytes(range(251)) * 1000
EOF = b"\0\0\0\1" + b"\0\0\0\3EOF\0\0\0\0"


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def packet(sock: socket.socket) -> tuple[int, bytes]:
    body = exactly(sock, struct.unpack("!I", exactly(sock, 4))[0])
    return body[0], body[1:]


def send(sock: socket.socket, kind: int, body: bytes) -> None:
    sock.sendall(struct.pack("!IB", len(body) + 1, kind) + body)


def serve(sock: socket.socket, most: int, backwards: bool) -> None:
    """Answer reads with at most so many bytes; if backwards, the later first, as long as there are more."""
    packet(sock)
    send(sock, 2, struct.pack("!I", 3))
    held: list[tuple[int, bytes]] = []
    while True:
        _kind, body = packet(sock)
        offset, size = struct.unpack("!QI", body[-12:])
        part = CONTENT[offset : offset + min(size, most)]
        answer = (103, body[:4] + struct.pack("!I", len(part)) + part) if part else (101, body[:4] + EOF)
        held.insert(0, answer)
        if not backwards or not select.select([sock], [], [], 0.02)[0]:
            for one in held:
                send(sock, *one)
            held.clear()


def session(talk: t.Callable[..., None], *arguments: t.Any) -> sftp.Session:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)

    def run() -> None:
        with theirs:
            try:
                talk(theirs, *arguments)
            except (EOFError, OSError):
                return

    threading.Thread(target=run, daemon=True).start()
    return sftp.Session(ours, "unix:///here")


@pytest.mark.parametrize(
    ("most", "backwards"), [(sftp.PART, False), (10_000, False), (sftp.PART, True), (10_000, True)]
)
def test_a_file_is_read_whole(most: int, backwards: bool) -> None:
    made = session(serve, most, backwards)
    output = io.BytesIO()
    assert made.read(b"handle", output) == len(CONTENT)
    assert output.getvalue() == CONTENT
    made.close()


def test_a_refusal_says_why() -> None:
    def refuse(sock: socket.socket) -> None:
        packet(sock)
        send(sock, 2, struct.pack("!I", 3))
        for code, words in ((2, b"no"), (4, b"the disk is full")):
            _kind, body = packet(sock)
            send(sock, 101, body[:4] + struct.pack("!II", code, len(words)) + words + b"\0\0\0\0")

    made = session(refuse)
    with pytest.raises(sftp.Refused, match="No such file or directory"):
        made.open("/none", sftp.READ)
    with pytest.raises(sftp.Refused, match="the disk is full"):
        made.open("/full", sftp.WRITE)
    made.close()


@pytest.mark.parametrize(
    "move",
    [
        lambda made: made.open("/run/pipe", sftp.READ),
        lambda made: made.write(b"handle", io.BytesIO(bytes(1 << 22)), 1 << 22),
    ],
    ids=["read", "written"],
)
def test_a_file_that_is_slow_is_no_lost_connection(move: t.Callable[[sftp.Session], object]) -> None:
    """As a pipe to which nobody writes, or a disk that takes no more for a while."""
    told = threading.Event()

    def stand_still(sock: socket.socket) -> None:
        packet(sock)
        send(sock, 2, struct.pack("!I", 3))
        told.wait(10)

    made = session(stand_still)
    made._sock.settimeout(0.2)
    with pytest.raises(_errors.DeadlinePassed, match=r"no answer after 0\.2 s"):
        move(made)
    told.set()
    made.close()


@pytest.mark.parametrize("said", [b"", b"\0\0\0\5\2\0\0", b"HTTP/1.1 400 Bad Request\r\n"])
def test_what_does_not_speak_sftp_is_an_error(said: bytes) -> None:
    with pytest.raises(_errors.ServerUnreachable, match=r"connection was lost|does not speak SFTP"):
        session(lambda sock: sock.sendall(said))
