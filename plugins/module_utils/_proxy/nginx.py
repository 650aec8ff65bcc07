# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The door to the proxy: reads what nginx serves in its instance, and carries plans out. Decides nothing."""

from __future__ import annotations

import hashlib
import io
import tarfile
import typing as t

from .. import _keys, _packages
from .._context import Context, Report
from .._errors import CommandFailed, MageError
from .._server import install, published, snapshot
from .._server.driver import Completed, Driver
from . import render, scripts
from .plan import Live, Observed, ProxyPlan, blamed, live_from, plan, present
from .spec import Desired

_READ_TIMEOUT = 120.0
_WRITE_TIMEOUT = 300.0
_INSTALL_TIMEOUT = 600.0
# Another run may write first, and nginx names one location at a time.
_ATTEMPTS = 3


def observe(desired: Desired, context: Context) -> Observed:
    """Read the server once, and the proxy's instance if it runs."""
    return _observe(desired, context)


def _observe(desired: Desired, context: Context, live: t.Optional[Live] = None) -> Observed:
    """Read who publishes; what is served only where it was not read before."""
    driver = context.driver
    found = snapshot.read(driver, wants_address=_publishes, with_projects=True)
    proxy = found.find(desired.project, desired.instance)
    if live is None:
        live = _read_live(desired, driver) if proxy and proxy.running else Live()
    return Observed(
        publishers=published.publishers(found, desired.declared, planned=context.check_mode),
        networks=frozenset(nic.network for nic in proxy.nics) if proxy else frozenset(),
        live=live,
    )


def _publishes(instance: snapshot.Instance) -> bool:
    return any(key.startswith(_keys.PREFIX) for key in instance.config)


def _read_live(desired: Desired, driver: Driver) -> Live:
    answer = _shell(desired, driver, scripts.OBSERVE, (desired.config_dir,), timeout=_READ_TIMEOUT)
    if answer.rc:
        raise CommandFailed(("reading", desired.config_dir), answer.rc, _text(answer))
    head, _blank, archive = answer.stdout.partition(b"\n\n")
    hosts = driver.pull(desired.instance, "/etc/hosts", project=desired.project)
    return live_from(head.decode("utf-8", "replace"), _unpack(archive), hosts.decode("utf-8", "surrogateescape"))


def apply(desired: Desired, observed: Observed, current: ProxyPlan, context: Context) -> Report:
    """Install nginx if it is missing, bring nginx to the plan, and write the hosts file.

    Where nginx refuses a location that this run did not declare, the rest is brought in without it.
    """
    driver, live = context.driver, observed.live
    if not live.facts.version:
        install.install(driver, desired.instance, _packages.NGINX, desired.project, _INSTALL_TIMEOUT)
        live = _read_live(desired, driver)
    for _attempt in range(_ATTEMPTS):
        final, live = _serve(desired, live, context)
        if _write_hosts(desired, driver, live.hosts, final.hosts):
            break
        live = _read_live(desired, driver)
    else:
        cause = f"not as wanted after {_ATTEMPTS} attempts: somebody else changes it at the same time"
        raise MageError(f"{desired.project}/{desired.instance}: /etc/hosts: {cause}")
    told = set(current.warnings)
    return Report(warnings=tuple(one for one in final.warnings if one not in told), values=present(final))


def result(
    desired: Desired, observed: Observed, current: ProxyPlan, report: t.Optional[Report]
) -> t.Mapping[str, t.Any]:
    """The return values: as carried out, or as planned."""
    return report.values if report else present(current)


def _serve(desired: Desired, live: Live, context: Context) -> tuple[ProxyPlan, Live]:
    """Bring nginx to what the instances publish. What they do is read after what is served: then nothing that another
    run brings in between is undone, since nginx's folder has moved."""
    refused: dict[str, str] = {}
    moved = 0
    observed = _observe(desired, context, live)
    current = plan(desired, observed, False)
    while current.stale(observed.live):
        answer = converge(desired, observed.live, current.files, context.driver)
        if answer.rc == 0:
            break
        if answer.rc == scripts.REFUSED:
            refused.update(blamed(_text(answer), current, observed))
        elif answer.rc == scripts.MOVED and moved < _ATTEMPTS:
            moved += 1
            observed = _observe(desired, context, _read_live(desired, context.driver))
        else:
            kept = "the former configuration is served" if answer.rc == scripts.NOT_SERVED else "nothing was changed"
            raise MageError(f"{desired.project}/{desired.instance}: {kept}: {_text(answer)}")
        current = plan(desired, observed, False, refused)
    return current, observed.live


def converge(desired: Desired, live: Live, files: t.Mapping[str, str], driver: Driver) -> Completed:
    arguments = (desired.config_dir, render.generation(files), live.current)
    return _shell(desired, driver, scripts.CONVERGE, arguments, _pack(files), _WRITE_TIMEOUT)


def _write_hosts(desired: Desired, driver: Driver, before: str, text: str) -> bool:
    """Write the hosts file, unless somebody else has written it since it was read: then False."""
    if text == before:
        return True
    data = text.encode("utf-8", "surrogateescape")
    expected = hashlib.sha256(before.encode("utf-8", "surrogateescape")).hexdigest()
    arguments = (desired.config_dir, str(len(data)), expected)
    answer = _shell(desired, driver, scripts.WRITE_HOSTS, arguments, data, _WRITE_TIMEOUT)
    if answer.rc not in (0, scripts.MOVED):
        raise CommandFailed(("writing", "/etc/hosts"), answer.rc, _text(answer))
    return answer.rc == 0


def _shell(
    desired: Desired,
    driver: Driver,
    script: str,
    arguments: t.Sequence[str],
    stdin: bytes = b"",
    timeout: float = _READ_TIMEOUT,
) -> Completed:
    argv = ("sh", "-c", script, "sh", *arguments)
    return driver.execute(desired.instance, argv, project=desired.project, stdin=stdin, timeout=timeout)


def _text(answer: Completed) -> str:
    return (answer.stdout + answer.stderr).decode("utf-8", "replace").strip()


def _pack(files: t.Mapping[str, str]) -> bytes:
    """The files as tar, the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, text in sorted({**files, f"{render.VHOSTS}/": ""}.items()):
            entry = tarfile.TarInfo(path.rstrip("/"))
            data = text.encode()
            entry.type = tarfile.DIRTYPE if path.endswith("/") else tarfile.REGTYPE
            entry.mode = 0o755 if entry.isdir() else 0o644
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _unpack(archive: bytes) -> dict[str, str]:
    """Text by path of a tar's files; what is no file is told by what it is, so that it differs from any of ours."""
    if not archive:
        return {}
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        for entry in content:
            path = entry.name.removeprefix("./")
            handle = content.extractfile(entry) if entry.isreg() else None
            if handle is not None:
                files[path] = handle.read().decode("utf-8", "backslashreplace")
            elif not entry.isdir():
                files[path] = f"not a file: {entry.linkname}"
    return files
