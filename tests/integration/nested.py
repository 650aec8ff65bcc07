# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LXD in a container, and in a container of that one. They share the machine's /usr, so that they cost seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import tarfile
import time
import typing as t
import warnings
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import server

# The images that each of the hosts inside has.
BUSYBOX = "mage-test/busybox"
HOST = "mage-test/nested"
INIT = "lxc.init.cmd=/init"
FOLDERS = (
    "dev etc/ssl proc root run srv sys tmp usr var/cache/lxd var/lib/lxd var/lib/misc var/log/lxd var/tmp etc/network"
)
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin", "var/run": "/run"}
METADATA = """architecture: {arch}
creation_date: 1700000000
properties: {{architecture: {arch}, description: a host for the tests of mage.lxd ({who}), os: nested}}
"""
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nlxd:x:100:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def write_image(path: Path) -> None:
    """An image that is next to nothing without the machine's /usr."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        _file(archive, "metadata.yaml", METADATA.format(arch=os.uname().machine, who=os.getpid()).encode())
        _folder(archive, "rootfs")
        folders = {parent.as_posix() for name in FOLDERS.split() for parent in (Path(name), *Path(name).parents)}
        for name in sorted(folders - {"."}):
            _folder(archive, f"rootfs/{name}", 0o1777 if name in ("tmp", "var/tmp") else 0o755)
        for name, target in LINKS.items():
            info = tarfile.TarInfo(f"rootfs/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        for name, text in FILES.items():
            _file(archive, f"rootfs/{name}", text.encode())
        init = Path(__file__).with_name("nested-init.sh").read_bytes()
        _file(archive, "rootfs/init", init, 0o755)
        # Programs that have several providers are links to here.
        archive.add("/etc/alternatives", "rootfs/etc/alternatives", filter=_as_root)


def _file(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    archive.addfile(info, io.BytesIO(data))


def _folder(archive: tarfile.TarFile, name: str, mode: int = 0o755) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, mode
    archive.addfile(info)


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    return info


@dataclasses.dataclass(frozen=True)
class Host:
    """A container in which an LXD runs. ``via`` is what leads there from the machine."""

    via: tuple[str, ...]

    def run(self, *argv: str, stdin: bytes | None = None, timeout: float = 240) -> str:
        """Run a command in there by the clients, each in the host around it."""
        return server.run(*enter(self.via), *server.LINGER, *argv, stdin=stdin, timeout=timeout).strip()

    def launch(self, name: str, image: str = BUSYBOX, *arguments: str) -> None:
        self.run("lxc", "launch", "--quiet", image, name, *arguments)

    def delete(self, *names: str) -> None:
        if names:
            self.run("lxc", "delete", "--force", *names)


def enter(via: t.Sequence[str]) -> list[str]:
    return [word for name in via for word in ("lxc", "exec", "--mode", "non-interactive", name, "--")]


@dataclasses.dataclass(frozen=True)
class Hosts:
    """``one`` runs in the machine's LXD, ``two`` in the LXD of ``one``."""

    one: Host
    two: Host


def _make(around: tuple[str, ...], name: str, image: str, images: str) -> Host:
    """Make a host in another one, or in the machine, and wait until it has its images."""
    client = [*enter(around), "lxc"]
    settings = {
        "security.nesting": "true",
        "environment.MAGE_DEPTH": str(len(around) + 1),
        "raw.lxc": INIT,
    }
    words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    server.run(*client, "init", "--quiet", image, name, *words)
    for device, source, path in (("usr", "/usr", "/usr"), ("images", images, "/srv")):
        places = [f"source={source}", f"path={path}", "readonly=true"]
        server.run(*client, "config", "device", "add", name, device, "disk", *places)
    server.run(*client, "start", name)
    made = Host((*around, name))
    _wait(made)
    return made


def _wait(host: Host) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            host.run("test", "-e", "/run/ready")
            return
        except RuntimeError as error:
            if time.monotonic() > deadline:
                log = host.run("tail", "-n", "40", "/var/log/lxd/stdout")
                raise RuntimeError(f"the LXD of {host.via} is not ready: {log}") from error
        time.sleep(0.1)


def _tell_ends(host: Host) -> None:
    """A server that ended by itself was started again; its last words belong into the report."""
    said = host.run("sh", "-c", "cat /var/log/lxd/ended 2>/dev/null || true")
    if said:
        warnings.warn(f"the LXD of {host.via} ended by itself: {said}", stacklevel=1)


@contextlib.contextmanager
def nested_hosts(folder: Path) -> t.Iterator[Hosts]:
    """The two hosts, in about five seconds; gone afterwards. ``folder`` is an empty one that both see."""
    delete_orphans()
    prefix = server.own_prefix()
    folder.chmod(0o755)
    write_image(folder / "nested.tar.gz")
    server.run("bash", str(Path(__file__).with_name("busybox-image.sh")), str(folder / "busybox.tar.gz"))
    image = f"{prefix}/nested"
    server.run("lxc", "image", "import", str(folder / "nested.tar.gz"), "--alias", image)
    try:
        one = _make((), f"{prefix}-one", image, str(folder))
        two = _make(one.via, "two", HOST, "/srv")
        yield Hosts(one, two)
        for host in (two, one):
            _tell_ends(host)
    finally:
        server.delete_instances(f"{prefix}-one")
        server.run("lxc", "image", "delete", image)


def delete_orphans() -> None:
    """Delete the images of runs that were interrupted."""
    for alias in server.lxd_query("/1.0/images/aliases?recursion=1") or []:
        if server.is_orphan(alias["name"].replace("/", "-")) and alias["name"].endswith("/nested"):
            server.run("lxc", "image", "delete", alias["name"])
