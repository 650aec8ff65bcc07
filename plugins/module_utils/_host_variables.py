# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The variables of an instance as a host: what the server says, what the instance says itself, and the way in. Pure."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t

from . import _keys
from ._server.options import ServerOptions
from ._server.snapshot import Address, Instance, Raw
from ._values import Problems, show

CONNECTION = "mage.lxd.lxd"
SSH = "ssh"
# Not for hosts: the project is the instance's own, a token is used once, and secret.
_NOT_HANDED_ON = frozenset({"endpoint", "project", "trust_token"})
# Left unsaid, the connection would take these from the environment or ansible.cfg.
_ALWAYS = frozenset({"via", "driver", "insecure_skip_verify", "ssh_args"})
# What the server keeps for itself, what has a variable of its own, and what is long and may hold passwords.
_NOT_IN_CONFIG = (
    "volatile.",
    "image.",
    _keys.PREFIX,
    "cloud-init.",
    "user.user-data",
    "user.vendor-data",
    "user.network-config",
    "user.meta-data",
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# They decide where and as whom tasks run, or are Ansible's own or ours.
_REFUSED = re.compile(
    r"ansible_.*|lxd_.*|mage_.*|inventory_.*|hostvars|groups?|group_names|omit|vars|environment|playbook_dir|play_hosts"
    r"|role_.*|discovered_interpreter_.*|__.*"
)
NOT_TRUSTED = "its project is restricted and not among restricted_projects: ignored"


@dataclasses.dataclass(frozen=True)
class Prefer:
    """Which address is ``ansible_host``: the first that fits all that is said here."""

    family: t.Optional[int] = None
    nic: t.Optional[str] = None
    network: t.Optional[str] = None

    def first(self, addresses: t.Iterable[Address]) -> t.Optional[str]:
        """The first address that fits."""
        network = ipaddress.ip_network(self.network) if self.network else None
        for one in addresses:
            if self.family not in (None, one.family) or self.nic not in (None, one.device):
                continue
            if network is None or ipaddress.ip_address(one.address) in network:
                return one.address
        return None


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a user chooses of the variables: the connection, and the address for ``ansible_host``."""

    connection: str = CONNECTION
    prefer: t.Optional[Prefer] = None


DEFAULT_SHAPE = Shape()


@dataclasses.dataclass(frozen=True)
class Own:
    """What an instance says of itself as a host."""

    variables: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def image(instance: Instance) -> dict[str, str]:
    """What the image said of itself: os, release, description and so on."""
    config = {**instance.expanded_config, **instance.config}
    return {key[len("image.") :]: str(value) for key, value in config.items() if key.startswith("image.")}


def known(instance: Instance, addresses: t.Sequence[Address], full: Raw) -> dict[str, t.Any]:
    """What is known of an instance. ``full`` is what was read of it besides."""
    config = instance.expanded_config
    found: dict[str, t.Any] = {
        "lxd_instance": instance.name,
        "lxd_project": instance.project,
        "lxd_status": instance.status,
        "lxd_type": instance.type,
        "lxd_location": instance.location,
        "lxd_description": instance.description,
        "lxd_profiles": list(instance.profiles),
        "lxd_image": image(instance),
        "lxd_config": {key: value for key, value in config.items() if not key.startswith(_NOT_IN_CONFIG)},
        "lxd_limits": {key[len("limits.") :]: value for key, value in config.items() if key.startswith("limits.")},
        "lxd_devices": instance.expanded_devices,
        "lxd_nat": _published(instance, _keys.NAT),
        "lxd_proxy": _published(instance, _keys.PROXY),
        "lxd_nics": _nics(instance, addresses),
        "lxd_addresses": [one._asdict() for one in addresses],
        "lxd_ipv4": [one.address for one in addresses if one.family == 4],
        "lxd_ipv6": [one.address for one in addresses if one.family == 6],
    }
    if "state" in full:
        found["lxd_state"] = full["state"] or {}
    if "snapshots" in full:
        found["lxd_snapshots"] = [_snapshot(one) for one in full["snapshots"] or ()]
    return found


def _nics(instance: Instance, addresses: t.Sequence[Address]) -> dict[str, dict[str, t.Any]]:
    return {
        nic.device: {
            "network": nic.network,
            "hwaddr": nic.hwaddr,
            "ipv4": [one.address for one in addresses if one.device == nic.device and one.family == 4],
            "ipv6": [one.address for one in addresses if one.device == nic.device and one.family == 6],
        }
        for nic in instance.nics
    }


def _published(instance: Instance, key: str) -> list[t.Any]:
    """What a key of the instance publishes. What is wrong with it is told by those who publish it."""
    value = _keys.decode(instance.config, key, instance.project, instance.name).value
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def _snapshot(raw: Raw) -> dict[str, t.Any]:
    return {key: raw.get(key) for key in ("name", "created_at", "expires_at", "stateful", "size")}


def own(instance: Instance, trusted: bool) -> Own:
    """The variables in ``user.mage.vars``, a mapping in JSON."""
    if not instance.config.get(_keys.VARS):
        return Own()
    label = f"{instance.project}/{instance.name}: {_keys.VARS}"
    if not trusted:
        return Own(warnings=(f"{label}: {NOT_TRUSTED}",))
    decoded = _keys.decode(instance.config, _keys.VARS, instance.project, instance.name)
    if decoded.problem:
        return Own(warnings=(decoded.problem,))
    if not isinstance(decoded.value, dict):
        return Own(warnings=(f"{label}: {show(decoded.value)}: must be a mapping of names and values",))
    problems = Problems()
    found = {}
    for name, value in decoded.value.items():
        if not _VARIABLE.fullmatch(name):
            problems.add(label, name, "must be letters, digits and underscores, such as http_port: left out")
        elif _REFUSED.fullmatch(name):
            problems.add(label, name, "an instance has no say in this variable: left out")
        else:
            found[name] = value
    return Own(found, problems.first())


def connection(
    instance: Instance, server: ServerOptions, addresses: t.Sequence[Address], shape: Shape
) -> dict[str, t.Any]:
    """How Ansible enters an instance, running or not: never as the controller itself."""
    found: dict[str, t.Any] = {
        "ansible_connection": shape.connection,
        "ansible_lxd_instance": instance.name,
        "ansible_lxd_project": instance.project,
        "ansible_lxd_endpoint": server.endpoint,
        **_handed_on(server),
    }
    preferred = (shape.prefer or Prefer()).first(addresses)
    if shape.connection == SSH:
        # Without an address, Ansible would take the name for one, and somebody else may have it.
        found["ansible_host"] = preferred or f"{instance.name}.invalid"
        return found
    found["ansible_user"] = "root"
    if shape.prefer and preferred:
        found["ansible_host"] = preferred
    return found


def _handed_on(server: ServerOptions) -> dict[str, t.Any]:
    """The server's other options."""
    found = {}
    for field in dataclasses.fields(server):
        value = getattr(server, field.name)
        if field.name not in _NOT_HANDED_ON and (field.name in _ALWAYS or value != field.default):
            found[f"ansible_lxd_{field.name}"] = list(value) if isinstance(value, tuple) else value
    return found
