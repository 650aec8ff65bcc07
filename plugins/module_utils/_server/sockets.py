# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Sockets to a server: opened with a deadline, and every way to fail told in one sentence."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import io
import os
import re
import socket
import ssl
import time
import typing as t
import urllib.parse

from .._errors import DeadlinePassed, ServerUnreachable
from .options import ServerOptions

DEFAULT_PORT = 8443
# Seconds before a silent line is asked for a sign of life, between the questions, and how often.
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_PEM = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class Deadline:
    """A point in time that a whole call must not pass; without seconds, there is none."""

    def __init__(self, seconds: t.Optional[float], what: str) -> None:
        self.seconds = seconds
        self.what = what
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> t.Optional[float]:
        """Seconds that are left. Raises DeadlinePassed when there are none."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> DeadlinePassed:
        """The exception to raise when it is over."""
        return DeadlinePassed(f"{self.what}: no answer after {self.seconds:g} s")


@contextlib.contextmanager
def lost() -> t.Iterator[None]:
    """Have every way in which a line breaks look like one: a host that was there may have no route any more."""
    try:
        yield
    except (TimeoutError, socket.timeout, BlockingIOError, ConnectionError, ssl.SSLError):
        raise
    except OSError as e:
        raise ConnectionResetError(e.errno, e.strerror) from e


class TimedSocket:
    """A socket as http.client wants it, each read and write of which ends with the call's deadline."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = Deadline(None, "")
        self._readers = 0
        self._done = False
        self._early = b""

    def sendall(self, data: t.Any) -> None:
        """Send all of the data, part by part, so that slow but steady sending is measured by the deadline alone."""
        view = memoryview(data)
        while view:
            self.sock.settimeout(self.deadline.remaining())
            with lost():
                view = view[self.sock.send(view) :]

    def arrived(self) -> bool:
        """Whether data or the end is there to be read. TLS has messages of its own, which select takes for data."""
        if not self._early:
            self.sock.settimeout(0)
            try:
                with lost():
                    self._early = self.sock.recv(1)
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
        return True

    def wait(self, deadline: Deadline) -> None:
        """Until something has arrived, within the deadline."""
        if not self._early:
            self.sock.settimeout(deadline.remaining())
            with lost():
                self._early = self.sock.recv(1)

    def take(self) -> t.Optional[bytes]:
        """What has arrived, without waiting: None if nothing has, no bytes at the end."""
        if not self.arrived():
            return None
        data, self._early = self._early, b""
        self.sock.settimeout(0)
        while data:
            try:
                with lost():
                    more = self.sock.recv(1 << 16)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            if not more:
                break
            data += more
        return data

    def receive(self, buffer: t.Any) -> int:
        """Read into a buffer, within the deadline."""
        if self._early:
            buffer[:1], self._early = self._early, b""
            return 1
        self.sock.settimeout(self.deadline.remaining())
        with lost():
            return self.sock.recv_into(buffer)

    def makefile(self, *args: t.Any, **kwargs: t.Any) -> io.BufferedReader:
        """A reader of the answer. http.client opens one for each."""
        self._readers += 1
        return io.BufferedReader(_Reader(self), 65536)

    def close(self) -> None:
        """Close the socket, once the answer that is being read is closed too: http.client counts on that."""
        self._done = True
        self._close_if_done()

    def reader_closed(self) -> None:
        """Note that an answer was closed."""
        self._readers -= 1
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._done and self._readers <= 0:
            self.sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, timed: TimedSocket) -> None:
        super().__init__()
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        return self._timed.receive(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._timed.reader_closed()


def connect(options: ServerOptions) -> socket.socket:
    """A socket to the server. Raises ServerUnreachable."""
    try:
        # These stand on what stands on this file, and few need them.
        if options.via:
            from . import nested

            return nested.connect(options)
        if options.endpoint.startswith("ssh://"):
            from . import ssh

            return ssh.connect(options)
        if options.socket_path is not None:
            return connect_unix(options.socket_path, options.connect_timeout)
        return _connect_tls(options, options.connect_timeout)
    except (OSError, ValueError) as e:
        raise ServerUnreachable(options.shown, cause(e, options.socket_path)) from e


def connect_unix(path: str, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_tls(options: ServerOptions, timeout: float) -> socket.socket:
    url = urllib.parse.urlsplit(options.endpoint)
    host = url.hostname or ""
    context = tls_context(options)
    sock = dial(host, url.port or DEFAULT_PORT, timeout)
    try:
        wrapped = context.wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise
    try:
        _check_pin(options, wrapped)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


def dial(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection that notices within a minute that the other end is gone: a command may be silent for longer."""
    sock = socket.create_connection((host, port), timeout=timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        # Not every controller is a Linux.
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def elsewhere(options: ServerOptions) -> str:
    """The machine that a server is on, as a person would write it; empty where that is this one."""
    if options.via:
        return options.shown
    host = urllib.parse.urlsplit(options.endpoint).hostname or ""
    return host if host and not _is_ours(host) else ""


def _is_ours(host: str) -> bool:
    """Whether this machine has an address of that name: to it, it sends from that address itself."""
    try:
        found = socket.getaddrinfo(host, DEFAULT_PORT, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, proto, _name, place in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, proto) as sock:
            sock.connect(place)
            if sock.getsockname()[0] == place[0]:
                return True
    return False


def tls_context(options: ServerOptions) -> ssl.SSLContext:
    """How to speak TLS. A pinned certificate is compared after the handshake, since its name need not match."""
    if _pinned(options) or options.insecure_skip_verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        # The machine's authorities, whatever SSL_CERT_FILE and SSL_CERT_DIR say.
        known = ssl.get_default_verify_paths()
        files, folders = (
            path if os.path.exists(path) else None for path in (known.openssl_cafile, known.openssl_capath)
        )
        context = ssl.create_default_context(cafile=files, capath=folders)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.client_cert:
        _load_pair(context, options)
    return context


def _load_pair(context: ssl.SSLContext, options: ServerOptions) -> None:
    pair = f"{options.client_cert} and {options.client_key}"
    try:
        # Without a word in advance, OpenSSL asks the terminal for the password of a key that has one.
        context.load_cert_chain(options.client_cert or "", options.client_key, password="")
    except ssl.SSLError as e:
        why = "do not belong together" if e.reason == "KEY_VALUES_MISMATCH" else "are not a certificate and its key"
        raise ServerUnreachable(options.shown, f"client_cert, client_key: {pair} {why}") from e
    except OSError as e:
        raise ServerUnreachable(options.shown, f"client_cert, client_key: {pair}: {e.strerror}") from e


def _pinned(options: ServerOptions) -> bool:
    return bool(options.server_cert or options.server_fingerprint)


def _check_pin(options: ServerOptions, sock: ssl.SSLSocket) -> None:
    """Compare the server's certificate with the pinned one. Nothing has been sent by then."""
    shown = sock.getpeercert(binary_form=True) or b""
    if options.server_cert and shown != _certificate(options.server_cert):
        raise ssl.SSLError(f"the server's certificate is not the one in {options.server_cert}")
    if options.server_fingerprint:
        found = hashlib.sha256(shown).hexdigest()
        if found != options.server_fingerprint:
            raise ssl.SSLError(
                f"the server's certificate is {found}, and not {options.server_fingerprint}, the pinned one"
            )


def _certificate(path: str) -> bytes:
    """The first certificate of a file, which may hold a chain and comments, too."""
    with open(path, encoding="utf-8", errors="replace") as file:
        found = _PEM.search(file.read())
    if not found:
        raise ssl.SSLError(f"server_cert: {path} holds no certificate in PEM format")
    return ssl.PEM_cert_to_DER_cert(found[0])


def cause(error: Exception, path: t.Optional[str]) -> str:
    """Why a connection failed, in words that say what to do."""
    if isinstance(error, FileNotFoundError):
        return "there is no such socket: LXD or Incus is not installed or was never started"
    if isinstance(error, PermissionError):
        return f"permission denied: run as root{_or_group(path)}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: the daemon is not running"
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}; name it in server_cert or server_fingerprint"
    if isinstance(error, ssl.SSLError):
        return str(getattr(error, "reason", "") or (error.args[-1] if error.args else "the TLS handshake failed"))
    if isinstance(error, socket.gaierror):
        return f"the name does not resolve: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _or_group(path: t.Optional[str]) -> str:
    try:
        group = grp.getgrgid(os.stat(path or "").st_gid).gr_name
    except (OSError, KeyError):
        return ""
    return "" if group == "root" else f" or as a member of the group {group}"
