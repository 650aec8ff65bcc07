# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server keeps, and the rules it keeps it by, as seen on LXD 5.0.2 and Incus 6.0. In memory, in one process.

Every method is what one request or one operation does. ``tests/integration/test_server_rules.py`` asks the same of the
real servers, so that this cannot drift.
"""

from __future__ import annotations

import copy
import hashlib
import ipaddress
import json
import re
import typing as t

Raw = dict[str, t.Any]

_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_KNOWN_CONFIG = (
    "user.",
    "environment.",
    "limits.",
    "security.",
    "boot.",
    "raw.",
    "linux.",
    "nvidia.",
    "migration.",
    "cloud-init.",
    "volatile.",
    "image.",
    "snapshots.",
    "cluster.",
)
_VM_LIVE = ("limits.memory", "security.protection.delete", "user.", "environment.", "boot.", "cloud-init.", "volatile.")
_SIZE = re.compile(r"\d+%|\d+(\.\d+)?\s*([KMGTPE]i?)?B?")
_DEVICE_TYPES = ("disk", "nic", "none", "proxy", "unix-char", "gpu", "usb")
IMAGE = "busybox"
FINGERPRINT = hashlib.sha256(IMAGE.encode()).hexdigest()
BRIDGE = "lxdbr0"
POOL = "default"
_NEVER = "1970-01-01T00:00:00Z"
_NO_IMAGE = "Image not provided for instance creation"
# What LXD and Incus say of a name that is taken.
_THERE = (
    'This "instances" entry already exists',
    'Failed to create "instances" entry: UNIQUE constraint failed: instances.project_id, instances.name',
)


class Refused(Exception):
    """The server's answer to a request or an operation that it does not carry out."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(f"{message} ({status})")


class Store:
    """Projects, images, profiles, one bridge with leases, and instances by (project, name)."""

    def __init__(self, flavor: str = "lxd", subnet: str = "10.99.0.1/24") -> None:
        self.flavor = flavor
        self.subnet = ipaddress.ip_interface(subnet)
        # What it says of its kernel, and whether that is true.
        self.features: dict[str, str] = {}
        self.shifts = True
        # Those that have been privileged since they started.
        self.privileged: set[tuple[str, str]] = set()
        # What other servers have, by their address and the alias there.
        self.remotes: dict[tuple[str, str], str] = {}
        self.projects = {"default": {"features.images": "true", "features.profiles": "true"}}
        self.images: dict[str, str] = {IMAGE: FINGERPRINT}
        self.profiles: dict[str, Raw] = {
            "default": {
                "eth0": {"type": "nic", "network": BRIDGE, "name": "eth0"},
                "root": {"type": "disk", "path": "/", "pool": POOL},
            }
        }
        # What profiles say besides their devices.
        self.profile_config: dict[str, Raw] = {}
        self.instances: dict[tuple[str, str], Raw] = {}
        # What dnsmasq remembers: it outlives the instance, and /leases does not show it then.
        self.leased: dict[str, str] = {}
        self._macs = 0
        self._starts = 0

    # --- reading ------------------------------------------------------------------------------------------------------

    def find(self, project: str, name: str) -> Raw:
        """The instance as it is kept. Raises Refused."""
        try:
            return self.instances[project, name]
        except KeyError:
            raise Refused(404, "Instance not found") from None

    def shown(self, raw: Raw) -> Raw:
        """An instance as the API answers."""
        value = copy.deepcopy(raw)
        for key in ("hollow", "snapshots"):
            value.pop(key, None)
        devices: Raw = {}
        config: Raw = {}
        for profile in value["profiles"]:
            config.update(self.profile_config.get(profile, {}))
            devices.update(copy.deepcopy(self.profiles[profile]))
        devices.update(copy.deepcopy(value["devices"]))
        value["expanded_devices"] = devices
        value["expanded_config"] = {**config, **value["config"]}
        return value

    def etag(self, raw: Raw) -> str:
        """As both servers make it: not of the description."""
        parts = [raw["architecture"], raw["config"], raw["devices"], raw["ephemeral"], raw["profiles"]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def nics(self, raw: Raw) -> dict[str, Raw]:
        """The NICs of an instance, those of its profiles too, by device, each with its hwaddr."""
        return {
            name: {**options, "hwaddr": options.get("hwaddr") or raw["config"].get(f"volatile.{name}.hwaddr", "")}
            for name, options in self.shown(raw)["expanded_devices"].items()
            if options["type"] == "nic"
        }

    def leases(self, project: str) -> list[Raw]:
        """Those of one project: pins of stopped instances too, and nothing of deleted ones."""
        found = [{"hostname": f"{BRIDGE}.gw", "hwaddr": "", "address": str(self.subnet.ip), "type": "gateway"}]
        for (owner, name), raw in self.instances.items():
            for nic in self.nics(raw).values() if owner == project else ():
                common = {"hostname": name, "hwaddr": nic["hwaddr"]}
                pin, leased = nic.get("ipv4.address"), self.leased.get(nic["hwaddr"])
                if pin:
                    found.append({**common, "address": pin, "type": "static"})
                if leased and leased != pin:
                    found.append({**common, "address": leased, "type": "dynamic"})
        return found

    def addresses(self, raw: Raw) -> Raw:
        """What ``GET …/state`` says of the network of an instance that runs."""
        if raw["status"] != "Running":
            return {}
        return {
            name: {
                "hwaddr": nic["hwaddr"],
                "addresses": [{"family": "inet", "address": self.leased[nic["hwaddr"]], "scope": "global"}],
            }
            for name, nic in self.nics(raw).items()
            if nic["hwaddr"] in self.leased
        }

    # --- what a request checks before it answers ----------------------------------------------------------------------

    def check_create(self, project: str, body: Raw) -> None:
        """What is refused at once; the rest fails in the operation."""
        if project not in self.projects:
            raise Refused(404, "Failed loading project: Project not found")
        _check_strings(body, "InstancesPost")
        source = body.get("source") or {}
        if source.get("type") not in ("image", "copy", "none"):
            raise Refused(400, "Unknown source type " + str(source.get("type", "")))
        known = source.get("server") or not source.get("alias") or source["alias"] in self.images
        if source["type"] == "image" and not known:
            raise Refused(404, "Image alias not found") if not self.is_incus else Refused(500, _NO_IMAGE)
        if source["type"] == "copy" and self._source(project, str(source.get("source"))) is None:
            raise Refused(
                404, f'Failed to fetch instance "{source.get("source")}" in project "{project}": Instance not found'
            )
        name = str(body.get("name") or "a")
        if not _NAME.fullmatch(name) and not (self.is_incus and name[0].isdigit() and _NAME.fullmatch("a" + name)):
            raise Refused(400, "Invalid instance name: Name can only contain alphanumeric and hyphen characters")
        for profile in body.get("profiles") or ():
            if profile not in self.profiles:
                raise Refused(500, f'Requested profile "{profile}" doesn\'t exist')

    def create(self, project: str, body: Raw) -> None:
        """The operation behind ``POST /1.0/instances``."""
        name = body["name"]
        failed = "Failed creating instance record: "
        source = body["source"]
        if source["type"] == "image" and not source.get("alias") and not self._has_image(source):
            raise Refused(400, _NO_IMAGE)
        fingerprint = source.get("fingerprint") or self.images.get(str(source.get("alias")), FINGERPRINT)
        if source["type"] == "image" and source.get("server"):
            fingerprint = self._remote(source)
        if (project, name) in self.instances:
            raise Refused(400, failed + "Add instance info to the database: " + _THERE[self.is_incus])
        config, devices = dict(body.get("config") or {}), copy.deepcopy(body.get("devices") or {})
        try:
            _check_config(config)
            _check_devices(devices)
        except Refused as e:
            raise Refused(400, failed + e.message) from None
        if source["type"] == "copy":
            original = t.cast(Raw, self._source(project, source["source"]))
            kept = {key: value for key, value in original["config"].items() if not key.startswith("volatile.")}
            config = {**kept, **config}
            devices = {**copy.deepcopy(original["devices"]), **devices}
        else:
            config = {"image.os": IMAGE, **config, "volatile.base_image": fingerprint}
        raw = {
            "name": name,
            "project": project,
            "status": "Stopped",
            "type": body.get("type") or "container",
            "architecture": "x86_64",
            "description": body.get("description") or "",
            "ephemeral": bool(body.get("ephemeral")),
            "location": "none",
            "last_used_at": _NEVER,
            "profiles": list(body.get("profiles", self._first_profiles(project, source))),
            "config": {key: value for key, value in config.items() if value != ""},
            "devices": devices,
        }
        if "root" not in self.shown(raw)["expanded_devices"]:
            raise Refused(
                400, failed + "Failed initialising instance: Failed getting root disk: No root device could be found"
            )
        raw["config"].update({"volatile.idmap.base": "0", "volatile.idmap.next": "[]"})
        raw["config"].update({"volatile.apply_template": "create"})
        raw["config"].setdefault("volatile.uuid", f"{project}-{name}")
        self._name_nics(raw)
        self.instances[project, name] = raw

    def _first_profiles(self, project: str, source: Raw) -> list[str]:
        """Those of an instance of which nobody said any. To LXD, a copy has none then."""
        if source["type"] != "copy":
            return ["default"]
        original = t.cast(Raw, self._source(project, source["source"]))
        return list(original["profiles"]) if self.is_incus else []

    def _source(self, project: str, name: str) -> t.Optional[Raw]:
        """The instance or the snapshot that a copy is made of."""
        instance, slash, snapshot = name.partition("/")
        raw: Raw = self.instances.get((project, instance), {})
        found = raw.get("snapshots", {}).get(snapshot) if slash else raw
        return found or None

    def _has_image(self, source: Raw) -> bool:
        return bool(source.get("properties")) or source.get("fingerprint") in self.images.values()

    def _remote(self, source: Raw) -> str:
        try:
            return self.remotes[source["server"], str(source.get("alias") or source.get("fingerprint"))]
        except KeyError:
            failed = f'Failed getting remote image info: Failed getting image: Get "{source["server"]}"'
            raise Refused(500 if self.is_incus else 400, failed) from None

    def bring_image(self, source: Raw, fingerprint: str) -> Raw:
        """The operation behind ``POST /1.0/images``: from another server, or as a file of that fingerprint."""
        found = fingerprint or self._remote(source)
        self.images[found[:12]] = found
        return {"fingerprint": found, "size": "1"}

    def take_snapshot(self, raw: Raw, name: str) -> None:
        """The operation behind ``POST …/snapshots``."""
        raw.setdefault("snapshots", {})[name] = {**self.shown(raw), "name": name}

    def move(self, raw: Raw) -> None:
        """What moving to another pool does besides: a copy was never started, and has a template on Incus."""
        if self.is_incus:
            raw["config"].setdefault("volatile.apply_template", "copy")
        raw["last_used_at"] = _NEVER

    def files(self, raw: Raw) -> list[str]:
        """What ``GET …/files?path=/`` lists."""
        if raw.get("hollow"):
            where = f"/var/lib/{self.flavor}/containers/{raw['name']}/rootfs"
            raise Refused(500, f"open {where}: no such file or directory")
        return ["bin", "etc", "root"]

    def _name_nics(self, raw: Raw) -> None:
        for name in self.nics(raw):
            if not raw["config"].get(f"volatile.{name}.hwaddr"):
                self._macs += 1
                raw["config"][f"volatile.{name}.hwaddr"] = f"00:16:3e:00:{self._macs >> 8:02x}:{self._macs & 255:02x}"

    def check_etag(self, raw: Raw, wanted: str) -> None:
        """Quotes around the tag do not count."""
        if wanted and wanted.strip('"') != self.etag(raw):
            raise Refused(412, f"ETag doesn't match: {self.etag(raw)} vs {wanted}")

    def patch(self, raw: Raw, body: Raw) -> None:
        """``PATCH``: done when it is answered. An empty value removes a key; a device that is named is replaced."""
        _check_strings(body, "InstancePut")
        config = {**raw["config"], **(body.get("config") or {})}
        devices = {**raw["devices"], **copy.deepcopy(body.get("devices") or {})}
        profiles = body.get("profiles")
        self._write(raw, config, devices, body, raw["profiles"] if profiles is None else profiles)

    def put(self, raw: Raw, body: Raw) -> None:
        """The operation behind ``PUT``."""
        config = dict(body.get("config") or {})
        if any(key.startswith("volatile.idmap.") and key not in config for key in raw["config"]):
            raise Refused(400, "Volatile idmap keys can't be deleted by the user")
        self._write(raw, config, copy.deepcopy(body.get("devices") or {}), body, body.get("profiles") or [])

    def _write(self, raw: Raw, config: Raw, devices: Raw, body: Raw, profiles: list[str]) -> None:
        for profile in profiles:
            if profile not in self.profiles:
                raise Refused(404, "Profile not found")
        try:
            _check_config(config)
        except Refused as e:
            raise Refused(500, "Invalid config: " + e.message) from None
        try:
            _check_devices(devices)
            self._check_pins(devices)
        except Refused as e:
            raise Refused(500, "Invalid devices: " + e.message) from None
        if raw["type"] == "virtual-machine" and raw["status"] != "Stopped":
            _check_vm(raw["config"], config)
        for name, options in devices.items():
            if raw["status"] == "Running" and options != raw["devices"].get(name):
                self._check_shift(
                    name, options, "Failed to start device", (raw["project"], raw["name"]) in self.privileged
                )
            if options != raw["devices"].get(name):
                self._check_free(raw, options, f'Failed update validation for device "{name}": ', 409)
        raw["config"] = {key: value for key, value in config.items() if value != ""}
        raw["devices"] = devices
        raw["profiles"] = list(profiles)
        raw["ephemeral"] = bool(body.get("ephemeral", raw["ephemeral"]))
        # Left out is taken for empty.
        raw["description"] = body.get("description") or ""
        self._name_nics(raw)

    def _check_pins(self, devices: Raw) -> None:
        for name, options in devices.items():
            address = options.get("ipv4.address")
            if options["type"] != "nic" or not address or options.get("network") != BRIDGE:
                continue
            failed = f'Device validation failed for "{name}": '
            if address == str(self.subnet.ip):
                raise Refused(
                    500, failed + f'IP address "{address}" is assigned to parent managed network device "{BRIDGE}"'
                )
            try:
                inside = ipaddress.ip_address(address) in self.subnet.network
            except ValueError:
                inside = False
            if not inside:
                raise Refused(500, failed + f'Device IP address "{address}" not within network "{BRIDGE}" subnet')

    def _check_shift(self, name: str, options: Raw, failed: str, privileged: bool = False) -> None:
        if options.get("shift") == "true" and (privileged or not self.shifts):
            raise Refused(500, f'{failed} "{name}": Failed to setup device: Required idmapping abilities not available')

    def _check_free(self, raw: Raw, options: Raw, failed: str, status: int) -> None:
        """The address of a NIC is no other NIC's. Creating an instance does not look, starting it does."""
        address = options.get("ipv4.address")
        if not address:
            return
        for other in self.instances.values():
            for nic in self.nics(other).values() if other is not raw else ():
                if nic.get("ipv4.address") == address and nic.get("network") == options.get("network"):
                    raise Refused(status, failed + f'IP address "{address}" already defined on another NIC')

    def delete(self, raw: Raw) -> None:
        """The operation behind ``DELETE``; a running instance is refused before it."""
        if raw["config"].get("security.protection.delete") == "true":
            raise Refused(400, "Instance is protected" if self.is_incus else "Container is protected")
        del self.instances[raw["project"], raw["name"]]

    @property
    def is_incus(self) -> bool:
        """The two differ in some words and numbers."""
        return self.flavor == "incus"

    def change_state(self, raw: Raw, action: str) -> None:
        """The operation behind ``PUT …/state``."""
        status = raw["status"]
        if action == "start" and status == "Error":
            raise Refused(400, "The instance cannot be started as in Error status")
        if action in ("stop", "restart") and status in ("Stopped", "Error"):
            raise Refused(400, "The instance is already stopped")
        if action in ("freeze", "unfreeze") and status in ("Stopped", "Error"):
            raise Refused(400, "The container isn't running")
        if action == "freeze" and status == "Frozen":
            raise Refused(400, "The container is already frozen")
        if action == "unfreeze" and status == "Running":
            raise Refused(400, "The container is already running")
        if action == "start" and status != "Stopped":
            raise Refused(400, "The instance is already running")
        if action in ("start", "restart"):
            self._start(raw)
        elif action == "stop":
            raw["status"] = "Stopped"
            raw["config"]["volatile.last_state.power"] = "STOPPED"
            if raw["ephemeral"]:
                del self.instances[raw["project"], raw["name"]]
        else:
            raw["status"] = "Frozen" if action == "freeze" else "Running"

    def _start(self, raw: Raw) -> None:
        for name, options in self.nics(raw).items():
            self._check_free(raw, options, f'Failed start validation for device "{name}": ', 400)
        if "/no/such/init" in raw["config"].get("raw.lxc", ""):
            raw["status"] = "Stopped"
            raise Refused(400, f"Failed to run: forkstart {raw['name']}: exit status 1")
        for name, options in self.shown(raw)["expanded_devices"].items():
            self._check_shift(name, options, "Failed to start device")
        raw["status"] = "Running"
        key = raw["project"], raw["name"]
        privileged = self.shown(raw)["expanded_config"].get("security.privileged") == "true"
        self.privileged = self.privileged | {key} if privileged else self.privileged - {key}
        raw["config"].pop("volatile.apply_template", None)
        raw["config"]["volatile.last_state.power"] = "RUNNING"
        self._starts += 1
        raw["last_used_at"] = f"2026-01-01T00:{self._starts // 60:02d}:{self._starts % 60:02d}Z"
        for nic in self.nics(raw).values():
            if nic.get("network") == BRIDGE and "lxc.init.cmd" not in raw["config"].get("raw.lxc", ""):
                # Another init asks for no address.
                self._lease(nic)

    def _lease(self, nic: Raw) -> None:
        """dnsmasq gives a pinned address to nobody else, unless it believes that another still has it."""
        others = {address for hwaddr, address in self.leased.items() if hwaddr != nic["hwaddr"]}
        pin = nic.get("ipv4.address")
        if pin and pin not in others:
            self.leased[nic["hwaddr"]] = pin
            return
        pins = {one.get("ipv4.address") for raw in self.instances.values() for one in self.nics(raw).values()}
        free = (str(one) for one in list(self.subnet.network.hosts())[100:] if str(one) not in pins | others)
        self.leased.setdefault(nic["hwaddr"], next(free))


def _check_strings(body: Raw, kind: str) -> None:
    for value in (body.get("config") or {}).values():
        if not isinstance(value, str):
            said = "number" if isinstance(value, (int, float)) else "value"
            raise Refused(400, f"json: cannot unmarshal {said} into Go struct field {kind}.config of type string")


def _check_config(config: Raw) -> None:
    for key, value in config.items():
        if not key.startswith(_KNOWN_CONFIG):
            raise Refused(400, f"Unknown configuration key: {key}")
        if key == "limits.memory" and value and not _SIZE.fullmatch(value):
            raise Refused(400, f"Invalid value: {value}")


def _check_vm(old: Raw, new: Raw) -> None:
    """A virtual machine that runs takes few keys; as the servers' sources have it, since none was at hand."""
    for key in sorted({*old, *new}):
        if old.get(key, "") != new.get(key, "") and not key.startswith(_VM_LIVE):
            raise Refused(400, f"Key {key!r} cannot be updated when VM is running")


def _check_devices(devices: Raw) -> None:
    for name, options in devices.items():
        if options.get("type") not in _DEVICE_TYPES:
            raise Refused(400, f"Invalid device type {options.get('type')}")
        if options["type"] == "disk" and options.get("path") != "/" and not options.get("source"):
            raise Refused(
                500,
                f'Device validation failed for "{name}": Disk entry is missing the required "source" '
                'or "path" property',
            )
