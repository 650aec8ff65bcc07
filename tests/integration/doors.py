# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every door to a server: a driver on a way. Ways are opened when first asked for, and closed with the session."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import time
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.plugins.module_utils._server import connect, options
from ansible_collections.mage.lxd.plugins.module_utils._server.cli import CliDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.rest import RestDriver
from ansible_collections.mage.lxd.tests.integration import listener, nested, server, sshd, tls

_T = t.TypeVar("_T")
IMAGE = "mage-test/busybox"
LXD_SOCKET = "/var/lib/lxd/unix.socket"
INCUS_SOCKET = "/var/lib/incus/unix.socket"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server, asked by its own client, so that the tests do not believe the code they test.

    ``client`` is the client's command, with what has to stand before it: ``("lxc", "exec", "outer", "--", "lxc")``.
    """

    name: str
    client: tuple[str, ...]
    image: str = IMAGE

    def run(self, *argv: str, stdin: bytes | None = None) -> str:
        """Run a command of the client and return what it printed; raises RuntimeError if it fails."""
        return server.run(*self.client, *argv, stdin=stdin)

    def query(self, path: str) -> t.Any:
        """One raw read (``/1.0/instances/web-1``), answered with the reply's metadata."""
        return json.loads(self.run("query", path))

    def delete(self, prefix: str) -> None:
        """Delete the instances of the default project whose names start with prefix, running or not."""
        names = [path.rpartition("/")[2].partition("?")[0] for path in self.query("/1.0/instances")]
        with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(self._delete_one, [name for name in names if name.startswith(prefix)]))

    def _delete_one(self, name: str) -> None:
        """A container that is just dying is busy; it can be deleted moments later."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.run("delete", "--force", name)
                return
            except RuntimeError as error:
                if "is protected" in str(error):
                    self.run("config", "unset", name, "security.protection.delete")
                    continue
                passes = any(words in str(error) for words in ("is busy", "Failed stopping instance"))
                if not passes or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


Opened = tuple[Server, options.ServerOptions]
LXD = Server("lxd", ("lxc",))
INCUS = Server("incus", ("incus",))


@contextlib.contextmanager
def _lxd_socket(_folder: Path, _doors: Doors) -> t.Iterator[Opened]:
    yield LXD, options.ServerOptions(f"unix://{LXD_SOCKET}")


@contextlib.contextmanager
def _incus_socket(_folder: Path, _doors: Doors) -> t.Iterator[Opened]:
    for path in INCUS.query("/1.0/instances"):
        name = path.rpartition("/")[2]
        if server.is_orphan(name):
            INCUS.delete(name)
    yield INCUS, options.ServerOptions(f"unix://{INCUS_SOCKET}")


@contextlib.contextmanager
def _lxd_https(folder: Path, _doors: Doors) -> t.Iterator[Opened]:
    """The server's own listener. A token makes it trust us, and pins its certificate."""
    cert, key = tls.make_certificate(folder, "client")
    with listener.listening(LXD.run) as endpoint:
        token = listener.make_token(LXD.run)
        asked = {"endpoint": endpoint, "client_cert": cert, "client_key": key, "trust_token": token}
        way = options.parse(asked, {})
        with contextlib.closing(CoreDriver(way)) as driver:
            driver.request("GET", "/1.0")
        try:
            yield LXD, dataclasses.replace(way, trust_token=None)
        finally:
            listener.forget(LXD.run, cert)


@contextlib.contextmanager
def _lxd_ssh(_folder: Path, _doors: Doors) -> t.Iterator[Opened]:
    with sshd.sshd() as host:
        yield LXD, options.ServerOptions(host.endpoint(path=LXD_SOCKET), ssh_args=host.args)


@contextlib.contextmanager
def _inside(_folder: Path, doors: Doors, depth: int) -> t.Iterator[Opened]:
    """The server in an instance, or in an instance of that one."""
    host = doors.hosts.one if depth == 1 else doors.hosts.two
    client = (*nested.enter(host.via), *server.LINGER, "lxc")
    yield Server(f"nested-{depth}", client), options.ServerOptions(f"unix://{LXD_SOCKET}", via=host.via)


# How each way is opened: given an empty folder of its own, whose server it leads to and with which options.
WAYS: dict[str, t.Callable[[Path, Doors], t.ContextManager[Opened]]] = {
    "lxd": _lxd_socket,
    "incus": _incus_socket,
    "https": _lxd_https,
    "ssh": _lxd_ssh,
    "nested": functools.partial(_inside, depth=1),
    "nested2": functools.partial(_inside, depth=2),
}
Driver = t.Union[CoreDriver, CliDriver]


def _cli(way: options.ServerOptions) -> Driver:
    """The client program here; on a nested way the one inside, run by the server around it."""
    return connect.connect_core(dataclasses.replace(way, driver="cli"))


DRIVERS: dict[str, t.Callable[[options.ServerOptions], Driver]] = {
    "core": CoreDriver,
    "pylxd": RestDriver,
    "cli": _cli,
}
# The name of a door: its driver and its way.
DOORS: dict[str, tuple[str, str]] = {
    "core-lxd": ("core", "lxd"),
    "core-incus": ("core", "incus"),
    "core-https": ("core", "https"),
    "core-ssh": ("core", "ssh"),
    "pylxd-lxd": ("pylxd", "lxd"),
    "pylxd-incus": ("pylxd", "incus"),
    "pylxd-https": ("pylxd", "https"),
    "pylxd-ssh": ("pylxd", "ssh"),
    "cli-lxd": ("cli", "lxd"),
    "cli-incus": ("cli", "incus"),
    "nested-bridge": ("core", "nested"),
    "nested-cli": ("cli", "nested"),
    "nested2-bridge": ("core", "nested2"),
    "nested2-cli": ("cli", "nested2"),
}


class Doors:
    """The ways that are open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Opened] = {}
        self._failed: dict[str, Exception] = {}
        self._stack = contextlib.ExitStack()

    def way(self, name: str) -> Opened:
        """The server and the options of a way (a key of WAYS)."""
        if name not in self._open:
            self._open[name] = self._enter(name, lambda folder: WAYS[name](folder, self))
        return self._open[name]

    def _enter(self, name: str, make: t.Callable[[Path], t.ContextManager[_T]]) -> _T:
        """Open something in an empty folder. What has failed is not tried again: every test names the first cause."""
        if name in self._failed:
            raise RuntimeError(f"{name} could not be opened: {self._failed[name]}") from self._failed[name]
        folder = self._folder / name
        folder.mkdir()
        try:
            return self._stack.enter_context(make(folder))
        except Exception as e:
            self._failed[name] = e
            raise

    @functools.cached_property
    def hosts(self) -> nested.Hosts:
        """The hosts in instances, made when first asked for."""
        return self._enter("hosts", nested.nested_hosts)

    def driver(self, door: str) -> Driver:
        """A new driver of a door (a key of DOORS), to be closed by the caller."""
        driver, way = DOORS[door]
        return DRIVERS[driver](self.way(way)[1])

    def close(self) -> None:
        """Close every way."""
        self._stack.close()
