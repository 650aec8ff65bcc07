# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of websockets, however they are cut, and the errors of sockets in words."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils._server import sockets, websocket
from ansible_collections.mage.lxd.plugins.module_utils._server.websocket import BINARY, CONTINUATION, PING, TEXT


def server_frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    """A frame as a server sends it: not masked."""
    first = (0x80 if final else 0) | opcode
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", first, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in zip(marks, marks[1:])]


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 10_000), max_size=12))
def test_messages_arrive_whole_however_they_are_cut(payloads: list[bytes], places: list[int]) -> None:
    stream = b"".join(server_frame(BINARY, payload) for payload in payloads)
    decoder = websocket.Decoder()
    found = [message.data for part in cut(stream, places) for message in decoder.feed(part)]
    assert found == payloads


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 70000])
def test_what_a_client_sends_is_masked_and_decodes_to_itself(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    sent = websocket.frame(TEXT, payload)
    assert sent[1] & 0x80
    assert [tuple(message) for message in websocket.Decoder().feed(sent)] == [(TEXT, payload)]


def test_a_ping_between_the_parts_of_a_message_is_told_apart() -> None:
    stream = server_frame(BINARY, b"one ", final=False) + server_frame(PING, b"?") + server_frame(CONTINUATION, b"two")
    found = [tuple(message) for message in websocket.Decoder().feed(stream)]
    assert found == [(PING, b"?"), (BINARY, b"one two")]


def test_a_websocket_leaves_pings_alone_and_notices_the_end() -> None:
    """LXD hangs up without reading what lies there, and over TLS that costs the last of the output."""
    ours, theirs = socket.socketpair()
    ws = websocket.WebSocket(ours, rest=server_frame(BINARY, b"early"))
    assert ws.waiting
    theirs.sendall(server_frame(PING, b"are you there") + server_frame(BINARY, b"late"))
    assert [message.data for message in ws.receive()] == [b"early", b"late"]
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
    theirs.close()
    assert ws.receive() == []
    assert ws.closed
    ws.close()


def test_what_was_sent_is_read_although_an_answer_cannot_be_sent() -> None:
    """A command's last output and a ping may wait while the server has hung up already."""
    ours, theirs = socket.socketpair()
    ws = websocket.WebSocket(ours)
    theirs.sendall(server_frame(PING, b"keepalive"))
    assert ws.receive() == []
    theirs.sendall(server_frame(PING, b"keepalive") + server_frame(BINARY, b"one"))
    theirs.sendall(server_frame(BINARY, b"two"))
    theirs.close()
    ws.queue(BINARY, b"nobody listens")
    ws.flush()
    assert (ws.deaf, ws.closed) == (True, False)
    assert [message.data for message in ws.receive()] == [b"one", b"two"]
    ws.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(), "never started"),
        (PermissionError(), "run as root"),
        (ConnectionRefusedError(), "the daemon is not running"),
        (socket.timeout(), "no answer in time"),
        (OSError(113, "No route to host"), "No route to host"),
        (ValueError("odd"), "odd"),
    ],
)
def test_a_failure_to_connect_says_what_to_do(error: Exception, words: str) -> None:
    assert words in sockets.cause(error, "/var/lib/lxd/unix.socket")
