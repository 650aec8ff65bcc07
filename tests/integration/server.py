# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads and cleans the server through its own client, so that the tests do not believe the code they test."""

from __future__ import annotations

import concurrent.futures
import ipaddress
import json
import os
import re
import secrets
import subprocess
import time
import typing as t
import urllib.parse
from pathlib import Path

PREFIX = "mt"
_NAMED_BY_US = re.compile(rf"{PREFIX}(\d+)-")


# Before a command that a client runs in an instance: clients now and then lose the output of one that ends at once.
LINGER = ("sh", "-c", '"$@"; code=$?; sleep 0.1; exit "$code"', "sh")


def run(*argv: str, stdin: bytes | None = None, timeout: float = 240) -> str:
    """Run a command and return what it printed; a command that fails raises with its own words.

    LXD's client misses the end of an operation now and then, and waits for it for ever: a key is set once more.
    """
    repeated = any(pair in (("config", "set"), ("config", "unset")) for pair in zip(argv, argv[1:]))
    limits = (timeout / 2, timeout / 2) if repeated else (timeout,)
    for index, limit in enumerate(limits):
        try:
            done = subprocess.run(argv, input=stdin or b"", capture_output=True, check=False, timeout=limit)
            break
        except subprocess.TimeoutExpired:
            if index == len(limits) - 1:
                raise
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def lxd_query(path: str, method: str = "GET", body: t.Any = None) -> t.Any:
    """One raw request (``/1.0/instances/web-1?project=p``), answered with the reply's metadata."""
    argv = ["lxc", "query", "--wait", "-X", method, path]
    answer = run(*argv, *(["-d", json.dumps(body)] if body is not None else []))
    return json.loads(answer) if answer.strip() else None


def instances(prefix: str = "") -> list[dict[str, t.Any]]:
    """The instances of all projects whose names start with prefix."""
    found = lxd_query("/1.0/instances?recursion=1&all-projects=true") or []
    return [instance for instance in found if instance["name"].startswith(prefix)]


def names() -> set[str]:
    """The instances of all projects, but those that tests make which run beside."""
    return {one["name"] for one in instances() if not is_of_others(one["name"])}


def contents() -> dict[str, list[dict[str, t.Any]]]:
    """All that a run could have changed, to be compared.

    Who uses a thing stands in no order, and every container that starts is an unmanaged network: both are left out. So
    is what tests make that run beside.
    """
    return {
        kind: [
            {key: value for key, value in one.items() if key != "used_by"}
            for one in lxd_query(f"/1.0/{kind}?recursion=1&all-projects=true") or []
            if one.get("managed", True) and not is_of_others(one["name"])
        ]
        for kind in ("instances", "networks", "profiles")
    }


def delete_instances(prefix: str) -> None:
    """Delete what starts with prefix, running or not."""
    _delete(instances(prefix))


def _delete(found: list[dict[str, t.Any]]) -> None:
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(_delete_one, found))


def _thaw(name: str) -> None:
    """With cgroups v1, what a nested server froze cannot die, and the server waits for its host's end for ever."""
    for state in Path("/sys/fs/cgroup/freezer").glob(f"lxc.payload.{name}/*/**/freezer.state"):
        state.write_text("THAWED", encoding="ascii")


def _delete_one(instance: dict[str, t.Any]) -> None:
    """A container that is just dying is busy; it can be deleted moments later."""
    deadline = time.monotonic() + 60
    _thaw(instance["name"])
    if instance["config"].get("security.protection.delete") == "true":
        run("lxc", "config", "unset", "--project", instance["project"], instance["name"], "security.protection.delete")
    while True:
        try:
            run("lxc", "delete", "--force", "--project", instance["project"], instance["name"])
            return
        except RuntimeError as error:
            if "is protected" in str(error):
                project = ("--project", instance["project"])
                run("lxc", "config", "unset", *project, instance["name"], "security.protection.delete")
                continue
            if "is busy" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def switched_client(folder: Path, project: str) -> list[str]:
    """Variables by which a user's client, of both servers, is switched to a server that nobody reaches, and on this one
    to a project."""
    text = f"""default-remote: elsewhere
remotes:
  elsewhere: {{addr: "https://127.0.0.1:1", public: false, auth_type: tls}}
  local: {{addr: "unix://", public: false, project: {project}}}
"""
    (folder / "config.yml").write_text(text, encoding="utf-8")
    return [f"LXD_CONF={folder}", f"INCUS_CONF={folder}"]


def bridge_subnet() -> str:
    """The address of lxdbr0 and the length of its prefix, such as 10.8.0.1/24."""
    return str(lxd_query("/1.0/networks/lxdbr0")["config"]["ipv4.address"])


def late_address(skip: int = 0) -> str:
    """An address near the end of lxdbr0's subnet that nothing has: a lease of anybody's may be anywhere in it.

    What takes one without asking anybody for it skips those that others look at.
    """
    network = ipaddress.ip_interface(bridge_subnet()).network
    taken = {lease["address"] for lease in lxd_query("/1.0/networks/lxdbr0/leases")}
    return next(str(network[-1 - back]) for back in range(1 + skip, 50 + skip) if str(network[-1 - back]) not in taken)


def mirror_host() -> str:
    """The host of the mirror that this machine installs packages from: what a container must be able to resolve."""
    addresses = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    return next(host for host in (urllib.parse.urlsplit(address).hostname for address in addresses) if host)


def own_prefix() -> str:
    """A prefix for names on the server and the host that says which process made them."""
    return f"{PREFIX}{os.getpid()}-{secrets.token_hex(2)}"


def is_orphan(name: str) -> bool:
    """Whether a test made this name and its process is gone (a run that was interrupted)."""
    match = _NAMED_BY_US.match(name)
    return match is not None and not os.path.exists(f"/proc/{match[1]}")


def is_of_others(name: str) -> bool:
    """Whether another process of tests made this name: it comes and goes while this one works."""
    match = _NAMED_BY_US.match(name)
    return match is not None and match[1] != str(os.getpid())


def own_bridge_name() -> str:
    """A name for a bridge of this process: an interface's has at most 15 characters."""
    return f"{PREFIX}{os.getpid()}-br"


def delete_orphans() -> None:
    _delete([instance for instance in instances(PREFIX) if is_orphan(instance["name"])])
    for network in lxd_query("/1.0/networks?recursion=1"):
        if network["managed"] and is_orphan(network["name"]):
            run("lxc", "network", "delete", network["name"])
