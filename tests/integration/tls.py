# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A TLS door to the server's local socket, so that https:// is tried without changing the server's configuration.

It stands in for the server's own listener: it asks for a client certificate and hands on the bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import select
import socket
import ssl
import threading
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.tests.integration import server

FILES = ("client_cert", "client_key", "server_cert")


@dataclasses.dataclass(frozen=True)
class Door:
    """Where it is, and the files that a client needs."""

    endpoint: str
    client_cert: str
    client_key: str
    server_cert: str

    def options(self) -> ServerOptions:
        """With the certificate pinned."""
        return ServerOptions(self.endpoint, **{key: getattr(self, key) for key in FILES})


def make_certificate(folder: Path, name: str) -> tuple[str, str]:
    """A self-signed certificate and its key: the paths of both."""
    cert, key = str(folder / f"{name}.crt"), str(folder / f"{name}.key")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:elsewhere.example.org"]
    server.run("openssl", "req", "-x509", *kind, *names, "-days", "2", "-keyout", key, "-out", cert)
    return cert, key


def make_authority(folder: Path) -> tuple[str, tuple[str, str]]:
    """A certificate authority, and what it signed for 127.0.0.1 alone: the certificate and its key."""
    authority, authority_key = make_certificate(folder, "authority")
    cert, key, request = (str(folder / f"signed.{kind}") for kind in ("crt", "key", "csr"))
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=signed", "-addext", "subjectAltName=IP:127.0.0.1"]
    server.run("openssl", "req", *kind, *names, "-keyout", key, "-out", request)
    signer = ["-CA", authority, "-CAkey", authority_key, "-CAcreateserial", "-copy_extensions", "copy"]
    server.run("openssl", "x509", "-req", "-in", request, *signer, "-days", "2", "-out", cert)
    return authority, (cert, key)


@contextlib.contextmanager
def tls_door(folder: Path, socket_path: str, own: tuple[str, str] | None = None) -> t.Iterator[Door]:
    """Listen on a free port of the loopback. ``own`` are its certificate and key."""
    cert, key = own or make_certificate(folder, "server")
    client_cert, client_key = make_certificate(folder, "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client_cert)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A process of its own, so that its descriptors are not taken for the driver's.
        forked = multiprocessing.get_context("fork")
        process = forked.Process(target=_accept, args=(listener, context, socket_path), daemon=True)
        process.start()
        try:
            yield Door(f"https://127.0.0.1:{listener.getsockname()[1]}", client_cert, client_key, cert)
        finally:
            process.terminate()
            process.join(5)


def _accept(listener: socket.socket, context: ssl.SSLContext, socket_path: str) -> None:
    while True:
        raw, _address = listener.accept()
        threading.Thread(target=_serve, args=(raw, context, socket_path), daemon=True).start()


def _serve(raw: socket.socket, context: ssl.SSLContext, socket_path: str) -> None:
    with (
        contextlib.suppress(OSError),
        raw,
        socket.socket(socket.AF_UNIX) as inner,
        context.wrap_socket(raw, server_side=True) as outer,
    ):
        inner.connect(socket_path)
        while True:
            if not outer.pending():
                select.select([outer, inner], [], [])
            if not _move(outer, inner):
                return
            if not _move(inner, outer):
                _hang_up(outer)
                return


def _hang_up(outer: ssl.SSLSocket) -> None:
    """What the other end has sent is read first: to close with that unread would take back what it has not read yet."""
    outer.settimeout(10)
    outer.shutdown(socket.SHUT_WR)
    while outer.recv(65536):
        pass


def _move(source: socket.socket, target: socket.socket) -> bool:
    """Hand on what is there. False at the end."""
    source.settimeout(0)
    try:
        data = source.recv(65536)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    if not data:
        return False
    target.settimeout(10)
    # Who listens no more may have sent something that is still on its way.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        target.sendall(data)
    return True
