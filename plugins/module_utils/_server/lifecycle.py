# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""An instance's life over any driver: what more than one request or a wait is needed for."""

from __future__ import annotations

import io
import os
import tarfile
import time
import typing as t

from .._errors import CommandFailed, DeadlinePassed, InvalidInput, MageError, PreconditionFailed, ServerError
from . import operations
from .driver import Driver, api

ATTEMPTS = 3
_POLL = 0.1
_SLACK = 10.0
_NO_SUCH_COMMAND = 127
# cloud-init's exit code for "done, with things that it could make up for".
_RECOVERED = 2
# What Incus and LXD say of an instance that did not stop in time.
_STILL_RUNS = ("context deadline exceeded", "shutting down the container failed")


def update(driver: Driver, name: str, change: t.Mapping[str, t.Any], project: str = "default") -> None:
    """Merge a change into an instance's configuration, unless somebody else writes three times in between."""
    query = {"project": project}
    for attempt in range(1, ATTEMPTS + 1):
        etag = driver.request("GET", api("instances", name), query=query).headers["etag"]
        try:
            headers = {"If-Match": etag}
            operations.run(driver, "PATCH", api("instances", name), query, dict(change), headers)
            return
        except PreconditionFailed:
            if attempt == ATTEMPTS:
                raise


def start(driver: Driver, name: str, project: str = "default", timeout: float = 60.0) -> None:
    """Start an instance."""
    _act(driver, name, project, {"action": "start", "timeout": int(timeout)}, timeout)


def stop(
    driver: Driver, name: str, project: str = "default", timeout: float = 30.0, retries: int = 0, force: bool = False
) -> None:
    """Ask an instance to stop, and ask again ``retries`` times where it has not within ``timeout``; or force it.

    Raises DeadlinePassed with its state if it still runs.
    """
    body = {"action": "stop", "timeout": int(timeout), "force": force}
    for attempt in range(retries + 1):
        try:
            _act(driver, name, project, body, timeout)
        except (ServerError, DeadlinePassed) as e:
            status = str(state(driver, name, project).get("status"))
            if status == "Stopped":
                return
            if force or (isinstance(e, ServerError) and not any(text in e.message for text in _STILL_RUNS)):
                raise
            if attempt == retries:
                asked = f"asked {attempt + 1} times, " if attempt else ""
                told = f"{name}: not stopped after {asked}{timeout:g} s each; last state: {status}"
                raise DeadlinePassed(told if attempt else told.replace(" each", "")) from e
        else:
            return


def _act(driver: Driver, name: str, project: str, body: t.Mapping[str, t.Any], timeout: float) -> None:
    path = api("instances", name, "state")
    operations.run(driver, "PUT", path, {"project": project}, dict(body), timeout=timeout + _SLACK)


def delete(driver: Driver, name: str, project: str = "default") -> None:
    """Delete a stopped instance."""
    operations.run(driver, "DELETE", api("instances", name), {"project": project})


def state(driver: Driver, name: str, project: str = "default") -> dict[str, t.Any]:
    """What an instance is doing: its status, processes, network and so on."""
    return driver.request("GET", api("instances", name, "state"), query={"project": project}).metadata or {}


def wait_for_address(
    driver: Driver, name: str, project: str = "default", family: str = "inet", timeout: float = 60.0
) -> str:
    """The first address of a running instance that others can reach. Raises DeadlinePassed with the state last seen."""
    end = time.monotonic() + timeout
    while True:
        seen = state(driver, name, project)
        found = _address(seen, family)
        if found:
            return found
        if time.monotonic() > end:
            raise DeadlinePassed(f"{name}: no address after {timeout:g} s; last state: {seen.get('status')}")
        time.sleep(_POLL)


def _address(seen: t.Mapping[str, t.Any], family: str) -> str:
    for _nic, one in sorted((seen.get("network") or {}).items()):
        for address in one.get("addresses") or ():
            if address.get("family") == family and address.get("scope") == "global":
                return str(address["address"])
    return ""


def wait_for_cloud_init(driver: Driver, name: str, project: str = "default", timeout: float = 600.0) -> bool:
    """Wait until cloud-init is done in an instance. False where it has none. Raises CommandFailed if it failed."""
    argv = ["cloud-init", "status", "--wait"]
    done = driver.execute(name, argv, project=project, timeout=timeout)
    if done.rc not in (0, _RECOVERED, _NO_SUCH_COMMAND):
        raise CommandFailed(argv, done.rc, (done.stdout + done.stderr).decode("utf-8", "replace"))
    return done.rc != _NO_SUCH_COMMAND


def push_folder(driver: Driver, name: str, source: str, target: str, project: str = "default") -> None:
    """Copy what is in a folder here into a folder of a running instance, as root's. Needs tar in there."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for entry in sorted(os.listdir(source)):
            tar.add(os.path.join(source, entry), arcname="./" + entry, filter=_as_root)
    script = 'mkdir -p -- "$1" && exec tar -xf - -C "$1"'
    _run(driver, name, project, ["sh", "-c", script, "sh", target], archive.getvalue())


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def pull_folder(driver: Driver, name: str, source: str, target: str, project: str = "default") -> None:
    """Copy files, folders and links out of a folder of a running instance. Raises InvalidInput for what would land
    elsewhere."""
    data = _run(driver, name, project, ["tar", "-cf", "-", "-C", source, "."], b"")
    links = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for entry in tar:
            place = _inside(target, entry.name, name)
            if entry.isdir():
                os.makedirs(place, exist_ok=True)
            elif entry.issym():
                links.append(entry)
            else:
                content = tar.extractfile(entry)
                if content is not None:
                    with open(place, "wb") as file:
                        file.write(content.read())
                    os.chmod(place, entry.mode & 0o777)
    # Last of all, so that nothing is written through a link.
    for entry in links:
        os.symlink(entry.linkname, _inside(target, entry.name, name))


def _inside(target: str, entry: str, name: str) -> str:
    """Where an entry is put. A link that stands there, as from an earlier copy, is removed."""
    parts = [part for part in entry.split("/") if part not in ("", ".")]
    if entry.startswith("/") or ".." in parts:
        raise InvalidInput([f"{name}: {entry!r} would land outside of {target}"])
    place = target
    for part in parts:
        if place != target and os.path.islink(place):
            raise InvalidInput([f"{name}: {entry!r} would land behind the link {place}"])
        place = os.path.join(place, part)
    if place != target and os.path.islink(place):
        os.unlink(place)
    return place


def _run(driver: Driver, name: str, project: str, argv: t.Sequence[str], stdin: bytes) -> bytes:
    done = driver.execute(name, argv, project=project, stdin=stdin)
    if done.rc == _NO_SUCH_COMMAND:
        raise MageError(f"{name}: copying a folder needs tar in the instance")
    if done.rc:
        raise CommandFailed(argv, done.rc, done.stderr.decode("utf-8", "replace"))
    return done.stdout
