# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a machine once and prints, as JSON, what it lacks to be the LXD or Incus host that was asked for.

Run by the role with the interpreter that Ansible uses there; the one argument is what was asked for, as JSON.
It changes nothing. The role does what is in the answer: an empty ``todo`` is a run without a change.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import typing as t

SOCKETS = {
    "lxd": ("/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket"),
    "incus": ("/var/lib/incus/unix.socket", "/run/incus/unix.socket"),
}
# What the server needs, what the modules call there, and what the storage driver needs.
COMMON_PACKAGES = (
    "btrfs-progs",
    "conntrack",
    "dnsmasq-base",
    "iproute2",
    "iptables",
    "lxcfs",
    "procps",
    "uidmap",
    "zstd",
)
PACKAGES = {"lxd": ("lxd", "lxd-client"), "incus": ("incus-base", "incus-client")}
UBUNTU_LXD = ("snapd",)
BUILD_PACKAGES = ("debian-archive-keyring", "mmdebstrap")
SYSCTL_FILE = "/etc/sysctl.d/60-mage-lxd.conf"
# Raised when image.sh builds something else from the same definition.
RECIPE = 1
LEAST_IDS = 65536

Json = dict[str, t.Any]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(path: str, url: str) -> t.Any:
    """The metadata of one answer of the server at that socket. Raises OSError or http.client.HTTPException."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", url)
        answer = connection.getresponse()
        body = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(f"GET {url}: {answer.status}: {body.get('error', '')}")
    return body["metadata"]


def find_server(flavor: str) -> t.Optional[Json]:
    """The running server, however it was started: socket, and what it says about itself. None if there is none."""
    for path in SOCKETS[flavor]:
        try:
            return {"socket": path, "info": get(path, "/1.0")}
        except (FileNotFoundError, ConnectionRefusedError):
            continue
    return None


def read_text(path: str) -> str:
    """A file's text; nothing for a file that is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def os_release() -> dict[str, str]:
    pairs = (line.split("=", 1) for line in read_text("/etc/os-release").splitlines() if "=" in line)
    return {key: value.strip('"') for key, value in pairs}


def missing_packages(wanted: t.Iterable[str]) -> list[str]:
    names = sorted(set(wanted))
    form = "${Package} ${db:Status-Status}\n"
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", form, *names], check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    installed = {line.split()[0] for line in done.stdout.decode().splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def wanted_packages(asked: Json, release: t.Mapping[str, str]) -> list[str]:
    snap = asked["flavor"] == "lxd" and release.get("ID") == "ubuntu"
    building = any(image["build"] for image in asked["images"])
    return [
        *COMMON_PACKAGES,
        *(UBUNTU_LXD if snap else PACKAGES[asked["flavor"]]),
        *(BUILD_PACKAGES if building else ()),
        *asked["extra_packages"],
    ]


def available_ids(uid_map: str) -> int:
    """How many ids there are from 0 up: all of them, or in a container those that its map has."""
    end = 0
    for line in sorted(uid_map.splitlines(), key=lambda line: int(line.split()[0])):
        first, _outside, count = (int(word) for word in line.split())
        if first != end:
            break
        end = first + count
    return end


def plan_subids(text: str, users: t.Sequence[str], available: int) -> t.Optional[str]:
    """The new text of /etc/subuid or /etc/subgid, None if every user has a range already.

    A range that this machine has not (in a container with a smaller map) cannot work, and is replaced.
    A machine with too few ids is left as it is: see notes().
    """
    start = 1000000 if available >= 1000000 + LEAST_IDS else LEAST_IDS
    count = min(1000000000, available - start)
    if count < LEAST_IDS:
        return None
    lines = text.splitlines()
    ranges = [(line, line.split(":")) for line in lines]
    mine = [(line, int(words[1]), int(words[2])) for line, words in ranges if len(words) == 3 and words[0] in users]
    bad = {line for line, first, length in mine if first + length > available}
    served = {line.split(":")[0] for line, _first, length in mine if length >= LEAST_IDS and line not in bad}
    added = [f"{user}:{start}:{count}" for user in users if user not in served]
    if not added and not bad:
        return None
    return "\n".join([*(line for line in lines if line not in bad), *added]) + "\n"


def subids(flavor: str) -> Json:
    """For each file its new text, where it needs one."""
    users = ["root"]
    # Debian's package keeps LXD's map under a user of its own.
    if flavor == "lxd" and any(line.startswith("_lxd:") for line in read_text("/etc/passwd").splitlines()):
        users.append("_lxd")
    found = {}
    for path, own_map in (("/etc/subuid", "/proc/self/uid_map"), ("/etc/subgid", "/proc/self/gid_map")):
        text = plan_subids(read_text(path), users, available_ids(read_text(own_map)))
        if text is not None:
            found[path] = text
    return found


def plan_sysctls(wanted: t.Mapping[str, int], current: t.Mapping[str, int], persisted: str) -> Json:
    """What to set now, and the text of our file: what we raised, as long as nobody has raised it further."""
    ours = {line.split("=")[0].strip() for line in persisted.splitlines() if "=" in line}
    low = {key: value for key, value in sorted(wanted.items()) if key in current and current[key] < value}
    stays = {key: value for key, value in wanted.items() if key in ours and current.get(key, 0) <= value}
    kept = {**stays, **low}
    lines = [f"{key} = {kept[key]}" for key in sorted(kept)]
    text = "\n".join(["# Raised by mage.lxd.lxd_host, as the server's documentation says for production.", *lines, ""])
    return {"set": low, "file": text if lines else ""}


def sysctls(wanted: t.Mapping[str, int]) -> Json:
    current, unavailable = {}, {}
    for key in sorted(wanted):
        path = "/proc/sys/" + key.replace(".", "/")
        if not os.path.exists(path):
            unavailable[key] = "not in this kernel or container"
            continue
        value = int(read_text(path).split()[0])
        if value < wanted[key] and not os.access(path, os.W_OK):
            unavailable[key] = f"read-only here, at {value}"
            continue
        current[key] = value
    persisted = read_text(SYSCTL_FILE)
    plan = plan_sysctls(wanted, current, persisted)
    return {**plan, "unavailable": unavailable, "write": plan["file"] != persisted}


def can_loop_btrfs() -> bool:
    """Whether a btrfs file system on a loop file can be mounted here."""
    if not os.path.exists("/dev/loop-control"):
        return False
    if "\tbtrfs\n" in read_text("/proc/filesystems"):
        return True
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin")
    return bool(modprobe) and subprocess.run([modprobe or "", "-nq", "btrfs"], check=False).returncode == 0


def choose_driver(asked: str, supported: t.Container[str], loop: bool) -> str:
    if asked != "auto":
        return asked
    return "btrfs" if loop and "btrfs" in supported else "dir"


def routed_networks(table: str) -> list[ipaddress.IPv4Network]:
    """What /proc/net/route reaches, apart from the default route."""
    found = []
    for line in table.splitlines()[1:]:
        words = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(words[i])[::-1], "big") for i in (1, 7))
        if mask:
            found.append(ipaddress.IPv4Network((address, bin(mask).count("1"))))
    return found


def free_address(routed: list[ipaddress.IPv4Network], seed: str) -> str:
    """A bridge's address in a /24 of 10.0.0.0/8 that this machine has no route to; the same for the same seed.

    The server looks for one itself, by asking each for an answer: where something answers for every address (a
    transparent proxy does), it finds none.
    """
    first = int(hashlib.sha256(seed.encode()).hexdigest(), 16)
    networks = (ipaddress.IPv4Network(((10 << 24) + ((first + i) % (1 << 16) << 8), 24)) for i in range(1 << 16))
    chosen = next(network for network in networks if not any(network.overlaps(other) for other in routed))
    return f"{chosen[1]}/24"


def plan_preseed(asked: Json, networks: list[Json], pools: list[Json], profile: Json, driver: str) -> Json:
    """What ``init --preseed`` is to add: nothing that is there is in it."""
    preseed: Json = {}
    bridges = [n["name"] for n in networks if n.get("managed") and n["type"] == "bridge"]
    names = [pool["name"] for pool in pools]
    bridge = asked["bridge"] if asked["bridge"] in bridges or not bridges else bridges[0]
    pool = asked["pool"] if asked["pool"] in names or not names else names[0]
    if not bridges:
        config = {"ipv4.address": asked["ipv4"], "ipv6.address": asked["ipv6"]}
        config.update({f"{ip}.nat": "true" for ip in ("ipv4", "ipv6") if asked[ip] != "none"})
        preseed["networks"] = [{"name": bridge, "type": "bridge", "config": config}]
    if not names:
        config = {"size": asked["pool_size"]} if driver == "btrfs" else {}
        preseed["storage_pools"] = [{"name": pool, "driver": driver, "config": config}]
    devices = profile["devices"]
    missing: Json = {}
    if not any(d.get("type") == "disk" and d.get("path") == "/" for d in devices.values()) and "root" not in devices:
        missing["root"] = {"type": "disk", "path": "/", "pool": pool}
    if not any(d.get("type") == "nic" for d in devices.values()) and "eth0" not in devices:
        missing["eth0"] = {"type": "nic", "name": "eth0", "network": bridge}
    if missing:
        preseed["profiles"] = [{"name": "default", "devices": missing}]
    return preseed


def preseed(asked: Json, server: Json) -> Json:
    path = server["socket"]
    # A member of a cluster is initialised by the cluster.
    if server["info"]["environment"].get("server_clustered"):
        return {}
    supported = [d["Name"] for d in server["info"]["environment"].get("storage_supported_drivers") or []]
    return plan_preseed(
        asked,
        # Incus says null where LXD says [].
        get(path, "/1.0/networks?recursion=1") or [],
        get(path, "/1.0/storage-pools?recursion=1") or [],
        get(path, "/1.0/profiles/default"),
        choose_driver(asked["pool_driver"], supported, can_loop_btrfs()),
    )


def definition(build: Json) -> str:
    """A stamp of what an image was built from."""
    return hashlib.sha256(json.dumps({"recipe": RECIPE, **build}, sort_keys=True).encode()).hexdigest()


def fingerprint(paths: t.Iterable[str]) -> str:
    """What the server calls an image of these files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def with_defaults(asked: Json) -> Json:
    """An image of the list with every key: Ansible checks nested options, and does not fill them in."""
    image: Json = dict.fromkeys(("server", "source", "file", "rootfs", "build"))
    image.update({"protocol": "simplestreams", **asked})
    if image["build"]:
        image["build"] = {"packages": [], "mirror": None, **image["build"]}
    return image


def plan_image(asked: Json, found: t.Optional[Json]) -> t.Optional[list[str]]:
    """The words for image.sh that bring this image, None where the alias has it already."""
    if asked["build"]:
        build = asked["build"]
        stamp = definition(build)
        if found and found["properties"].get("mage.definition") == stamp:
            return None
        return ["build", build["suite"], build["mirror"] or "", ",".join(build["packages"]), stamp]
    if asked["file"]:
        files = [path for path in (asked["file"], asked["rootfs"]) if path]
        if found and found["fingerprint"] == fingerprint(files):
            return None
        return ["file", *files]
    words = [asked["server"], asked["protocol"], asked["source"] or asked["alias"]]
    # An image that was put there by hand has no source: it is left alone.
    source = found and (found.get("update_source") or dict(zip(("server", "protocol", "alias"), words)))
    if source and [source["server"], source["protocol"], source["alias"]] == words:
        return None
    return ["pull", *words]


def images(asked: list[Json], server: t.Optional[Json]) -> list[Json]:
    there = get(server["socket"], "/1.0/images?recursion=1") if server and asked else []
    found = {alias["name"]: image for image in there or [] for alias in image["aliases"] or []}
    plans = ((image["alias"], plan_image(image, found.get(image["alias"]))) for image in asked)
    return [{"alias": alias, "words": words} for alias, words in plans if words is not None]


def image_problems(asked: list[Json]) -> t.Iterator[str]:
    for i, image in enumerate(asked):
        at = f"lxd_host_images[{i}]"
        if sum(bool(image[kind]) for kind in ("server", "file", "build")) != 1:
            yield f"{at}: {json.dumps(image['alias'])}: must have one of server, file and build"
        if [other["alias"] for other in asked].index(image["alias"]) != i:
            yield f"{at}.alias: {json.dumps(image['alias'])}: is in the list twice"
        for key in ("file", "rootfs"):
            if image[key] and not os.path.isfile(image[key]):
                yield f"{at}.{key}: {json.dumps(image[key])}: there is no such file on this host"
        build = image["build"] or {"suite": "ok", "packages": []}
        if not re.fullmatch(r"[a-z][a-z0-9.-]*", build["suite"]):
            yield f"{at}.build.suite: {json.dumps(build['suite'])}: must be a suite's name, such as bookworm"
        for j, name in enumerate(build["packages"]):
            if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
                yield f"{at}.build.packages[{j}]: {json.dumps(name)}: must be a package's name, such as nginx-light"


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def interpreter() -> Json:
    """Whether the Python that runs the modules (this one) can import what they need."""
    system = sys.prefix == sys.base_prefix and os.path.realpath(sys.executable).startswith("/usr/bin/")
    missing = [name for name in ("netaddr", "pylxd") if not importable(name)]
    return {"path": sys.executable, "version": "{}.{}".format(*sys.version_info), "system": system, "missing": missing}


def problems(asked: Json, release: t.Mapping[str, str], python: Json) -> list[str]:
    found = list(image_problems(asked["images"]))
    if os.geteuid() != 0:
        found.append("become: the role must run as root (become: true)")
    if not {"debian", "ubuntu"} & {release.get("ID"), *release.get("ID_LIKE", "").split()}:
        found.append(f"{release.get('ID')}: the role knows Debian and Ubuntu")
    if asked["python"] and python["missing"] and not python["system"]:
        found.append(
            f"{python['path']}: cannot import {' and '.join(python['missing'])}, and the role only cares for the "
            f"system's Python: {python['path']} -m pip install {' '.join(python['missing'])}"
        )
    return found


def notes(answer: Json) -> list[str]:
    """What the role cannot bring about, and leaves as it is."""
    lines = [f"{key} is {why}" for key, why in answer["sysctls"]["unavailable"].items()]
    if available_ids(read_text("/proc/self/uid_map")) < 2 * LEAST_IDS:
        lines.append("too few user ids for unprivileged containers: give this machine more (security.idmap.size)")
    return lines


def todo(answer: Json, asked: Json) -> list[str]:
    """What the role will do, for people."""
    lines = [f"install {', '.join(answer['packages'])}"] if answer["packages"] else []
    lines += ["install the snap lxd"] if answer["snap"] else []
    lines += [f"write {path}" for path in sorted(answer["subids"])]
    lines += [f"raise {key} to {value}" for key, value in answer["sysctls"]["set"].items()]
    lines += [f"write {SYSCTL_FILE}"] if answer["sysctls"]["write"] else []
    if answer["server"] is None:
        lines += [f"start {asked['flavor']}", "add what it lacks of bridge, pool and default profile"]
    for kind, items in sorted(answer["preseed"].items()):
        lines += [f"add to {kind}: {json.dumps(item, sort_keys=True)}" for item in items]
    if asked["python"] and answer["python"]["missing"]:
        lines.append(f"bring {' and '.join(answer['python']['missing'])} to {answer['python']['path']}")
    return lines + [f"{image['words'][0]} the image {image['alias']}" for image in answer["images"]]


def survey(asked: Json) -> Json:
    asked = {**asked, "images": [with_defaults(image) for image in asked["images"]]}
    release = os_release()
    python = interpreter()
    found = problems(asked, release, python)
    if found:
        return {"problems": found}
    server = find_server(asked["flavor"])
    snap = asked["flavor"] == "lxd" and release.get("ID") == "ubuntu"
    answer: Json = {
        "problems": [],
        "codename": release.get("VERSION_CODENAME", ""),
        "distribution": release.get("ID", ""),
        "packages": missing_packages(wanted_packages(asked, release)),
        "snap": snap and not os.path.exists("/snap/bin/lxd"),
        "subids": subids(asked["flavor"]),
        "sysctls": sysctls(asked["sysctls"]),
        "systemd": os.path.isdir("/run/systemd/system"),
        "server": server and {"socket": server["socket"]},
        "python": python,
        "preseed": preseed(asked, server) if server else {},
        "address": free_address(
            routed_networks(read_text("/proc/net/route")), read_text("/etc/machine-id") + asked["flavor"]
        ),
        "images": images(asked["images"], server),
    }
    return {**answer, "notes": notes(answer), "todo": todo(answer, asked)}


if __name__ == "__main__":
    json.dump(survey(json.loads(sys.argv[1])), sys.stdout)
