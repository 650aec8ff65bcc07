# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a machine once and prints, as JSON, what it lacks to be the LXD or Incus host that was asked for.

Run by the role with the interpreter that Ansible uses there; the one argument is what was asked for, as JSON.
It changes nothing. The role does what is in the answer: an empty ``todo`` is a run without a change.
"""

from __future__ import annotations

import difflib
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
import time
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
# Raised when mage-lxd-image.sh builds something else from the same definition.
RECIPE = 2
LEAST_IDS = 65536

# What text an option may be, and how that is said.
RULES = {
    "bridge": (r"[A-Za-z0-9][A-Za-z0-9._-]{1,14}", "must be an interface's name of 2 to 15 characters, such as lxdbr0"),
    "pool": (r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "must be the name of a storage pool, such as default"),
    "pool_size": (r"[1-9][0-9]*(kB|KiB|[MGTPE]i?B)", "must be a number with a unit, such as 20GiB"),
    "wait": (r"[1-9][0-9]{0,5}", "must be a number of seconds, such as 60"),
}
PROTOCOLS = ("simplestreams", "lxd", "incus", "oci")
IMAGE_KEYS = ("alias", "server", "protocol", "source", "file", "rootfs", "build")
BUILD_KEYS = ("suite", "packages", "mirror")
_PATH = (r"/[^\n]+", "must be an absolute path of this host, such as /srv/images/appliance.tar.gz")
IMAGE_RULES = {
    "alias": (r"[A-Za-z0-9][A-Za-z0-9._/+-]*", "must be a name, such as debian/bookworm"),
    "server": (r"https?://[^\s/]+(/\S*)?", "must be a URL, such as https://images.example.org"),
    "protocol": ("|".join(PROTOCOLS), f"must be one of {', '.join(PROTOCOLS)}"),
    "source": (r"\S+", "must be an image's name on that server, such as alpine/3.20/cloud"),
    "file": _PATH,
    "rootfs": _PATH,
}

Json = dict[str, t.Any]


class NotReady(OSError):
    """The server is there, and still about to start."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(path: str, url: str) -> t.Any:
    """The metadata of one answer of the server at that socket. Raises NotReady, OSError, http.client.HTTPException."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", url)
        answer = connection.getresponse()
        body = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status == 503:
        raise NotReady(body.get("error", ""))
    if answer.status != 200:
        raise OSError(f"GET {url}: {answer.status}: {body.get('error', '')}")
    return body["metadata"]


def find_server(flavor: str, patience: float) -> t.Optional[Json]:
    """The running server, however it was started: socket, and what it says about itself. None if there is none.

    One that is about to start is waited for, so many seconds. Raises NotReady.
    """
    end = time.monotonic() + patience
    for path in SOCKETS[flavor]:
        while True:
            try:
                return {"socket": path, "info": get(path, "/1.0")}
            except (FileNotFoundError, ConnectionRefusedError):
                break
            except NotReady:
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)
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
        text = read_text(path).split()
        if len(text) != 1 or number(text[0]) is None:
            unavailable[key] = f"no single number, but {' '.join(text)}"
            continue
        value = int(text[0])
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
    devices = profile["devices"]
    lacks_nic = not any(d.get("type") == "nic" for d in devices.values()) and "eth0" not in devices
    pool = asked["pool"] if asked["pool"] in names or not names else names[0]
    # Who has a bridge that the server does not manage needs none of ours.
    if lacks_nic and not bridges:
        config = {"ipv4.address": asked["ipv4"], "ipv6.address": asked["ipv6"]}
        config.update({f"{ip}.nat": "true" for ip in ("ipv4", "ipv6") if asked[ip] != "none"})
        preseed["networks"] = [{"name": bridge, "type": "bridge", "config": config}]
    if not names:
        config = {"size": asked["pool_size"]} if driver == "btrfs" else {}
        preseed["storage_pools"] = [{"name": pool, "driver": driver, "config": config}]
    missing: Json = {}
    if not any(d.get("type") == "disk" and d.get("path") == "/" for d in devices.values()) and "root" not in devices:
        missing["root"] = {"type": "disk", "path": "/", "pool": pool}
    if lacks_nic:
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


def normal(asked: Json) -> Json:
    """What was asked for, as the rest reads it."""
    return {
        **asked,
        "images": [with_defaults(image) for image in asked["images"]],
        "extra_packages": names(asked["extra_packages"]),
        "sysctls": {key: int(value) for key, value in asked["sysctls"].items()},
    }


def with_defaults(asked: Json) -> Json:
    """An image of the list with every key."""
    image: Json = dict.fromkeys(("server", "source", "file", "rootfs", "build"))
    image.update({"protocol": "simplestreams", **{key: value for key, value in asked.items() if value is not None}})
    if image["build"]:
        build = image["build"]
        image["build"] = {**build, "packages": build.get("packages") or [], "mirror": build.get("mirror")}
    return image


def plan_image(asked: Json, found: t.Optional[Json]) -> t.Optional[list[str]]:
    """The words for mage-lxd-image.sh that bring this image, None where the alias has it already."""
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
    aliases = (found.get("aliases") or ()) if found else ()
    if any(one["name"] == asked["alias"] and one.get("description") == " ".join(words) for one in aliases):
        return None
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


def show(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def nearest(word: object, known: t.Iterable[str]) -> str:
    matches = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def names(value: t.Any) -> list[t.Any]:
    """A list, or as Ansible takes one: text with commas."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else list(value or ())


def package_problems(at: str, value: t.Any) -> t.Iterator[str]:
    for i, name in enumerate(value):
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
            yield f"{at}[{i}]: {show(name)}: must be a package's name, such as nginx-light"


def address_problem(value: object, version: int) -> bool:
    """Whether this is no address that a bridge can have."""
    address, _slash, length = str(value).partition("/")
    try:
        parsed = ipaddress.ip_interface(str(value))
    except ValueError:
        return True
    hosts = parsed.network.num_addresses > 2
    reserved = parsed.ip in (parsed.network.network_address, parsed.network.broadcast_address)
    return parsed.version != version or not length.isdigit() or not address or not hosts or reserved


def number(value: object) -> t.Optional[int]:
    """A whole number, or one that is written as text."""
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,19}", str(value)):
        return None
    return int(str(value))


def option_problems(asked: Json) -> t.Iterator[str]:
    for key, (pattern, rule) in RULES.items():
        if not re.fullmatch(pattern, str(asked[key])):
            yield f"lxd_host_{key}: {show(asked[key])}: {rule}"
    for key, version, example in (("ipv4", 4, "10.8.0.1/24"), ("ipv6", 6, "fd42:8::1/64")):
        if asked[key] not in ("auto", "none") and address_problem(asked[key], version):
            rule = f"must be auto, none, or a host's address with the length of its network's prefix, such as {example}"
            yield f"lxd_host_{key}: {show(asked[key])}: {rule}"
    yield from package_problems("lxd_host_extra_packages", names(asked["extra_packages"]))
    if not isinstance(asked["sysctls"], dict):
        yield f"lxd_host_sysctls: {show(asked['sysctls'])}: must be a mapping, such as {{vm.max_map_count: 262144}}"
        return
    for key, value in asked["sysctls"].items():
        if not re.fullmatch(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+", key):
            yield f"lxd_host_sysctls: {show(key)}: must be the name of a kernel setting, such as vm.max_map_count"
        elif number(value) is None:
            yield f"lxd_host_sysctls.{key}: {show(value)}: must be a whole number, such as 262144"


def image_problems(asked: t.Any) -> t.Iterator[str]:
    if not isinstance(asked, list):
        yield f"lxd_host_images: {show(asked)}: must be a list"
        return
    seen: list[object] = []
    for i, image in enumerate(asked):
        at = f"lxd_host_images[{i}]"
        if not isinstance(image, dict):
            yield f"{at}: {show(image)}: must be a mapping, such as {{alias: debian, build: {{suite: bookworm}}}}"
            continue
        yield from unknown_keys(at, image, IMAGE_KEYS)
        yield from image_words(at, image)
        if image.get("alias") in seen:
            yield f"{at}.alias: {show(image['alias'])}: is in the list twice"
        if image.get("alias") is not None:
            seen.append(image["alias"])
        if sum(bool(image.get(kind)) for kind in ("server", "file", "build")) != 1:
            yield f"{at}: {show(image.get('alias'))}: must have one of server, file and build"
        if image.get("rootfs") and not image.get("file"):
            yield f"{at}.rootfs: {show(image['rootfs'])}: belongs to the metadata in file, which is missing"
        yield from build_problems(f"{at}.build", image.get("build"))


def image_words(at: str, image: Json) -> t.Iterator[str]:
    """What is wrong with each word of an image alone."""
    if image.get("alias") is None:
        yield f"{at}.alias: missing: {IMAGE_RULES['alias'][1]}"
    for key, (pattern, rule) in IMAGE_RULES.items():
        value = image.get(key)
        if value is None:
            continue
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            yield f"{at}.{key}: {show(value)}: {rule}{nearest(value, PROTOCOLS) if key == 'protocol' else ''}"
        elif key in ("file", "rootfs") and not os.path.isfile(value):
            yield f"{at}.{key}: {show(value)}: there is no such file on this host"


def unknown_keys(at: str, value: Json, known: t.Sequence[str]) -> t.Iterator[str]:
    for key in value:
        if key not in known:
            yield f"{at}.{key}: unknown key{nearest(key, known) or ' (known are ' + ', '.join(known) + ')'}"


def build_problems(at: str, build: t.Any) -> t.Iterator[str]:
    if not build:
        return
    if not isinstance(build, dict):
        yield f"{at}: {show(build)}: must be a mapping, such as {{suite: bookworm}}"
        return
    yield from unknown_keys(at, build, BUILD_KEYS)
    suite, mirror, packages = build.get("suite"), build.get("mirror"), build.get("packages") or []
    if not isinstance(suite, str) or not re.fullmatch(r"[a-z][a-z0-9.-]*", suite):
        yield f"{at}.suite: {show(suite)}: must be a suite's name, such as bookworm"
    if mirror and not (isinstance(mirror, str) and re.match(r"[a-z+]+:/|deb ", mirror)):
        yield f"{at}.mirror: {show(mirror)}: must be a URL, such as http://mirror.example.org/debian, or deb lines"
    if not isinstance(packages, list):
        yield f"{at}.packages: {show(packages)}: must be a list of packages' names, such as [nginx-light]"
    else:
        yield from package_problems(f"{at}.packages", packages)


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
    found = [*option_problems(asked), *image_problems(asked["images"])]
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
    release = os_release()
    python = interpreter()
    found = problems(asked, release, python)
    if found:
        return {"problems": found}
    asked = normal(asked)
    try:
        server = find_server(asked["flavor"], int(asked["wait"]))
    except NotReady as e:
        return {"problems": [f"{asked['flavor']}: it was still starting after {asked['wait']} s: {e}"]}
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
    # On a line of its own: over SSH, what others write to standard error comes on the same stream.
    print("\n" + json.dumps(survey(json.loads(sys.argv[1]))))
