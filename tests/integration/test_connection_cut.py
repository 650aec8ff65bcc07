# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files on a line that is cut, and with a server that has no SFTP: something stands between us and the server."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import exec as execution
from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import server

LARGE = bytes(range(256)) * 8192
Change = t.Callable[[bytes], bytes]


@pytest.fixture(scope="module", params=["lxd", "incus"])
def box(request: pytest.FixtureRequest, doors: doors_module.Doors) -> t.Iterator[tuple[str, options.ServerOptions]]:
    """A running container, and where its server is."""
    at, where = doors.way(request.param)
    name = server.own_prefix() + "-cut"
    at.run("launch", at.image, name)
    yield name, where
    at.delete(name)


@contextlib.contextmanager
def _between(where: options.ServerOptions, at: Path, change: Change) -> t.Iterator[str]:
    """A socket that leads to the server's. What goes either way is changed before; the line is cut at EOFError."""

    def move(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := source.recv(1 << 16):
                target.sendall(change(data))
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                outer, _address = listener.accept()
                inner = socket.socket(socket.AF_UNIX)
                inner.connect(str(where.socket_path))
                for pair in ((outer, inner), (inner, outer)):
                    threading.Thread(target=move, args=pair, daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(at))
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield f"unix://{at}"
        listener.shutdown(socket.SHUT_RDWR)


def _cutting(after: int) -> Change:
    """Cuts one line once, when so many bytes have gone by."""
    moved = 0

    def change(data: bytes) -> bytes:
        nonlocal moved
        before, moved = moved, moved + len(data)
        if before <= after < moved:
            raise EOFError
        return data

    return change


@pytest.mark.parametrize("move", ["push", "pull"])
def test_a_transfer_that_is_cut_is_an_error_and_leaves_nothing(
    box: tuple[str, options.ServerOptions], move: str, tmp_path: Path
) -> None:
    name, where = box
    whole = CoreDriver(where)
    whole.push(name, "/root/file", LARGE)
    arguments = {"push": (name, "/root/file", LARGE + LARGE), "pull": (name, "/root/file")}
    with _between(where, tmp_path / "socket", _cutting(len(LARGE) // 2)) as endpoint:
        cut = CoreDriver(options.ServerOptions(endpoint))
        with pytest.raises(_errors.ServerUnreachable, match="connection was lost while a file was moved"):
            getattr(cut, move)(*arguments[move])
        cut.close()
    assert whole.pull(name, "/root/file") == LARGE
    assert whole.execute(name, ["find", "/root", "-name", ".mage-*"]).stdout == b""
    whole.execute(name, ["rm", "/root/file"])
    whole.close()


@pytest.mark.parametrize(("timeout", "delay"), [(600.0, 2), (5.0, 15)])
def test_output_that_stands_still_on_the_line_is_whole_or_an_error(
    box: tuple[str, options.ServerOptions], timeout: float, delay: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, where = box
    monkeypatch.setattr(execution, "GRACE", 0.5)

    def change(data: bytes) -> bytes:
        # The server has told the end on another line by then.
        time.sleep(delay if b"OUTPUT" in data else 0)
        return data

    with _between(where, tmp_path / "socket", change) as endpoint:
        slow = CoreDriver(options.ServerOptions(endpoint, timeout=timeout))
        argv = ["sh", "-c", "echo output | tr a-z A-Z"]
        if timeout > delay:
            assert slow.execute(name, argv) == (0, b"OUTPUT\n", b"")
        else:
            with pytest.raises(_errors.ServerUnreachable, match="the rest of a command's output did not come in time"):
                slow.execute(name, argv)
        slow.close()


def test_a_pipe_is_refused_before_the_server_waits_in_it(box: tuple[str, options.ServerOptions]) -> None:
    name, where = box
    driver = CoreDriver(dataclasses.replace(where, timeout=30))
    driver.execute(name, ["sh", "-c", "mkfifo /root/pipe; ln -s pipe /root/link"])
    for path in ("/root/pipe", "/root/link"):
        with pytest.raises(_errors.ServerError, match=f"pull {name}:{path}: it is a pipe"):
            driver.pull(name, path)
    driver.push(name, "/root/pipe", b"a file now")
    assert driver.pull(name, "/root/link") == b"a file now"
    driver.execute(name, ["rm", "/root/pipe", "/root/link"])
    driver.close()


def test_a_server_without_sftp_moves_files_all_the_same(box: tuple[str, options.ServerOptions], tmp_path: Path) -> None:
    name, where = box
    # An older server says of this path what it says of any that it does not know.
    with _between(where, tmp_path / "socket", lambda data: data.replace(b"/sftp?", b"/none?")) as endpoint:
        older = CoreDriver(options.ServerOptions(endpoint))
        older.push(name, "/root/file", LARGE, mode=0o640, uid=7, gid=8)
        assert older.execute(name, ["stat", "-c", "%a %u %g", "/root/file"]).stdout == b"640 7 8\n"
        older.execute(name, ["ln", "-s", "file", "/root/link"])
        assert older.pull(name, "/root/link") == LARGE
        older.execute(name, ["sh", "-c", "echo odd >/root/x$(printf '\\351')"])
        assert older.pull(name, "/root/x\udce9") == b"odd\n"
        with pytest.raises(_errors.NotFound) as missing:
            older.pull(name, "/root/none")
        assert missing.value.request == f"pull {name}:/root/none"
        with pytest.raises(_errors.NotFound) as nobody:
            older.pull(f"{name}-none", "/root/none")
        assert nobody.value.request.startswith("GET /1.0/instances/")
        assert older.execute(name, ["find", "/root", "-name", ".mage-*"]).stdout == b""
        older.execute(name, ["sh", "-c", "rm /root/file /root/link /root/x*"])
        # Asked for once, and then never again.
        assert [path.rpartition("/")[2] for _method, path in older.requests].count("sftp") == 1
        older.close()
