# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""One read of the server, which every wing plans from: instances, networks, leases, as values."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing as t
import urllib.parse

from .. import _keys
from .._errors import DeadlinePassed, InvalidInput, NotFound, ServerError
from .._values import show
from .driver import Driver, api

Raw = t.Mapping[str, t.Any]
# Where an instance's NIC stands: project, instance, device.
NicKey = tuple[str, str, str]
# Takes in what the server could not say.
Failed = t.Callable[[str], None]


class Address(t.NamedTuple):
    """An address of an instance. ``family`` is 4 or 6; ``pinned``: the server leases no other."""

    device: str
    network: str
    family: int
    address: str
    pinned: bool


@dataclasses.dataclass(frozen=True)
class Nic:
    """A network device of an instance, as it is after profiles. ``network`` is the bridge, managed or not."""

    device: str
    network: str
    managed: bool
    hwaddr: str
    ipv4: str
    ipv6: str


@dataclasses.dataclass(frozen=True)
class Instance:
    """A container or virtual machine. ``config`` and ``devices`` are its own, ``expanded_*`` include its profiles."""

    project: str
    name: str
    status: str
    type: str
    location: str
    description: str
    ephemeral: bool
    profiles: tuple[str, ...]
    config: t.Mapping[str, str]
    devices: t.Mapping[str, t.Mapping[str, str]]
    expanded_config: t.Mapping[str, str]
    expanded_devices: t.Mapping[str, t.Mapping[str, str]]
    # When it was started last, as the server writes it; of one that never was, the beginning of time.
    last_used: str = ""

    @classmethod
    def from_api(cls, raw: Raw) -> Instance:
        """From what the server says of one instance. Fields that a broken instance lacks are empty."""
        return cls(
            project=str(raw.get("project") or "default"),
            name=str(raw["name"]),
            status=str(raw.get("status") or "Error"),
            type=str(raw.get("type") or "container"),
            location=str(raw.get("location") or ""),
            description=str(raw.get("description") or ""),
            ephemeral=bool(raw.get("ephemeral")),
            profiles=tuple(raw.get("profiles") or ()),
            config=raw.get("config") or {},
            devices=raw.get("devices") or {},
            expanded_config=raw.get("expanded_config") or raw.get("config") or {},
            expanded_devices=raw.get("expanded_devices") or raw.get("devices") or {},
            last_used=str(raw.get("last_used_at") or ""),
        )

    @property
    def running(self) -> bool:
        """Whether processes of it run now."""
        return self.status in ("Running", "Ready")

    @property
    def nics(self) -> tuple[Nic, ...]:
        """Its network devices, sorted by device name."""
        found = []
        for device, options in sorted(self.expanded_devices.items()):
            if options.get("type") != "nic":
                continue
            hwaddr = options.get("hwaddr") or self.config.get(f"volatile.{device}.hwaddr", "")
            network = options.get("network") or options.get("parent") or ""
            ipv4, ipv6 = options.get("ipv4.address", ""), options.get("ipv6.address", "")
            found.append(Nic(device, network, bool(options.get("network")), hwaddr.lower(), ipv4, ipv6))
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the server, managed by it or only seen by it."""

    name: str
    project: str
    type: str
    managed: bool
    config: t.Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Lease:
    """An address that a managed network has given out, or reserves. ``type`` is dynamic, static, gateway or uplink."""

    network: str
    project: str
    hostname: str
    hwaddr: str
    address: str
    type: str


@dataclasses.dataclass(frozen=True)
class Server:
    """The server itself. ``flavor`` is lxd or incus; ``name`` that of the cluster member that answered; ``fingerprint``
    that of its certificate, which all members of a cluster share."""

    flavor: str
    version: str
    name: str
    clustered: bool
    extensions: frozenset[str]
    architectures: tuple[str, ...]
    # What its kernel can, such as idmapped_mounts.
    features: frozenset[str] = frozenset()
    fingerprint: str = ""

    @classmethod
    def from_api(cls, raw: Raw) -> Server:
        """From ``GET /1.0``."""
        environment = raw.get("environment") or {}
        return cls(
            flavor=str(environment.get("server") or "lxd"),
            version=str(environment.get("server_version") or ""),
            name=str(environment.get("server_name") or ""),
            clustered=bool(environment.get("server_clustered")),
            extensions=frozenset(raw.get("api_extensions") or ()),
            architectures=tuple(environment.get("architectures") or ()),
            features=frozenset(
                name for name, able in (environment.get("kernel_features") or {}).items() if able == "true"
            ),
            fingerprint=str(environment.get("certificate_fingerprint") or ""),
        )


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What was read. ``restricted`` are the projects with ``restricted=true``; ``states`` the addresses by NIC of
    running instances on networks that have no leases (unmanaged bridges, macvlan)."""

    server: Server
    instances: tuple[Instance, ...] = ()
    networks: tuple[Network, ...] = ()
    leases: tuple[Lease, ...] = ()
    restricted: frozenset[str] = frozenset()
    states: t.Mapping[NicKey, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def trusts(self, instance: Instance) -> bool:
        """Whether the instance is in a project whose users are trusted with the whole server."""
        return instance.project not in self.restricted

    def find(self, project: str, name: str) -> t.Optional[Instance]:
        """The instance of that name, or None."""
        return self._by_name.get((project, name))

    @functools.cached_property
    def _by_name(self) -> dict[tuple[str, str], Instance]:
        return {(instance.project, instance.name): instance for instance in self.instances}

    def addresses(self, instance: Instance) -> tuple[Address, ...]:
        """Its global addresses, sorted by device and family: pins first, else what it has now while it runs."""
        found: list[Address] = []
        for nic in instance.nics:
            current = self._current(instance, nic) if instance.running else ()
            for family, pin in ((4, nic.ipv4), (6, nic.ipv6)):
                if pin and pin != "none":
                    # A device of the type routed or ipvlan may have several, and with their masks.
                    pins = [one.strip().partition("/")[0] for one in pin.split(",")]
                    found.extend(Address(nic.device, nic.network, family, one, True) for one in pins)
                    continue
                for address in current:
                    if (6 if ":" in address else 4) == family:
                        found.append(Address(nic.device, nic.network, family, address, False))
        return tuple(found)

    @functools.cached_property
    def _leased(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Addresses by network and hardware address: a thousand instances have a thousand leases."""
        found: dict[tuple[str, str], list[str]] = {}
        for lease in self.leases:
            found.setdefault((lease.network, lease.hwaddr), []).append(lease.address)
        return {key: tuple(dict.fromkeys(addresses)) for key, addresses in found.items()}

    def _current(self, instance: Instance, nic: Nic) -> tuple[str, ...]:
        leased = self._leased.get((nic.network, nic.hwaddr), ()) if nic.hwaddr else ()
        return leased or self.states.get((instance.project, instance.name, nic.device), ())


def read_server(driver: Driver) -> Server:
    """Read ``/1.0``, or use what the driver has read of it when it connected."""
    known = getattr(driver, "server_info", None)
    return Server.from_api(known or driver.request("GET", "/1.0").metadata)


def read_instances(driver: Driver, project: t.Optional[str] = None) -> tuple[Instance, ...]:
    """One read: all instances of a project, or of all projects."""
    raw = read_raw(driver, project)
    return tuple(sorted((Instance.from_api(one) for one in raw), key=lambda one: (one.project, one.name)))


def read_raw(driver: Driver, project: t.Optional[str] = None, recursion: int = 1) -> list[dict[str, t.Any]]:
    """One read: what the server says of all instances of a project, or of all projects.

    With a recursion of 2 it says ``state`` and ``snapshots`` as well, for which it enters each that runs.
    """
    query = {"recursion": str(recursion), **({"project": project} if project else {"all-projects": "true"})}
    return list(driver.request("GET", api("instances"), query=query).metadata or [])


def read_networks(driver: Driver, project: str = "default") -> tuple[Network, ...]:
    """One read: the networks that instances of a project see."""
    raw = driver.request("GET", api("networks"), query={"recursion": "1", "project": project}).metadata or []
    return tuple(
        Network(one["name"], project, one.get("type", ""), bool(one.get("managed")), one.get("config") or {})
        for one in raw
    )


def read_leases(driver: Driver, network: str, project: str = "default") -> tuple[Lease, ...]:
    """One read: what a managed network has leased to a project. A network without leases has none."""
    return _leases(driver, network, project) or ()


def _leases(driver: Driver, network: str, project: str) -> t.Optional[tuple[Lease, ...]]:
    """None: the network, such as one of macvlan, leases nothing itself."""
    try:
        raw = driver.request("GET", api("networks", network, "leases"), query={"project": project}).metadata or []
    except NotFound:
        return None
    except ServerError as error:
        if "not implemented" not in error.message.lower():
            raise
        return None
    return tuple(
        Lease(
            network,
            str(one.get("project") or project),
            one.get("hostname", ""),
            str(one.get("hwaddr", "")).lower(),
            one.get("address", ""),
            one.get("type", ""),
        )
        for one in raw
    )


def read_restricted(driver: Driver) -> frozenset[str]:
    """One read: the projects whose users are not trusted with the whole server."""
    raw = driver.request("GET", api("projects"), query={"recursion": "1"}).metadata or []
    return frozenset(one["name"] for one in raw if (one.get("config") or {}).get("restricted") == "true")


def check_project(driver: Driver, name: str) -> None:
    """Raise InvalidInput if there is no such project: an empty list of instances is how servers tell of it, and the
    first object that is to be made in it. The default project is always there."""
    if name == "default":
        return
    try:
        driver.request("GET", api("projects", name))
    except ServerError as e:
        known = _projects(driver)
        # A restricted certificate is told of no project but its own: 403.
        if e.status not in (403, 404) or name in known:
            return
        more = f" and {len(known) - 10} more" if len(known) > 10 else ""
        there = f" (there are {', '.join(known[:10])}{more})" if known else ""
        raise InvalidInput([f"project: {show(name)}: there is no such project{there}"]) from e


def _projects(driver: Driver) -> list[str]:
    """The names of the projects that there are; none for who may not ask."""
    try:
        paths = driver.request("GET", api("projects")).metadata or []
    except ServerError:
        return []
    return sorted(urllib.parse.unquote(str(path).rpartition("/")[2]) for path in paths)


def read_state_addresses(driver: Driver, instance: Instance) -> dict[NicKey, tuple[str, ...]]:
    """One read that enters the instance: its global addresses by device. For NICs that no managed network knows."""
    try:
        path = api("instances", instance.name, "state")
        raw = driver.request("GET", path, query={"project": instance.project}).metadata
    except NotFound:
        # It was deleted since the list was read.
        raw = None
    return state_addresses(instance, raw)


def state_addresses(instance: Instance, state: t.Optional[Raw]) -> dict[NicKey, tuple[str, ...]]:
    """The global addresses by device that an instance's state tells."""
    by_hwaddr = {
        str(one.get("hwaddr", "")).lower(): tuple(
            each["address"] for each in one.get("addresses") or () if each.get("scope") == "global"
        )
        for one in ((state or {}).get("network") or {}).values()
    }
    return {
        (instance.project, instance.name, nic.device): by_hwaddr.get(nic.hwaddr, ())
        for nic in instance.nics
        if nic.hwaddr
    }


def read(
    driver: Driver,
    project: t.Optional[str] = None,
    wants_address: t.Callable[[Instance], bool] = lambda instance: False,
    with_projects: bool = False,
) -> Snapshot:
    """One snapshot: the list of instances (of one project or of all), and what the addresses of those need that
    ``wants_address`` picks. Leases are read once a network; only NICs outside managed networks are entered. Projects
    are read if that is said, or if an instance names groups, which only those of trusted projects do."""
    snapshot = Snapshot(read_server(driver), read_instances(driver, project))
    with_projects = with_projects or any(one.config.get(_keys.GROUPS) for one in snapshot.instances)
    restricted = read_restricted(driver) if with_projects else frozenset()
    snapshot = dataclasses.replace(snapshot, restricted=restricted)
    return read_addresses(driver, snapshot, [one for one in snapshot.instances if wants_address(one)])


def read_addresses(
    driver: Driver, snapshot: Snapshot, wanted: t.Iterable[Instance], failed: t.Optional[Failed] = None
) -> Snapshot:
    """The snapshot with what the addresses of these instances need. What it knows of states is not read again.

    ``failed`` is told what the server cannot say, and the rest is read; without it, that raises.
    """
    running = [one for one in wanted if one.running]
    open_nics = [(one, nic) for one in running for nic in one.nics if not nic.ipv4 or not nic.ipv6]
    leases: list[Lease] = []
    unleased = {""}
    for network, owner in sorted({(nic.network, one.project) for one, nic in open_nics if nic.network}):
        with _told(failed, f"network {network}: its leases are missing"):
            found = _leases(driver, network, owner)
            leases.extend(found or ())
            unleased |= {network} if found is None else set()
    snapshot = dataclasses.replace(snapshot, leases=tuple(leases))
    states = dict(snapshot.states)
    for one in {
        one.project + "/" + one.name: one
        for one, nic in open_nics
        if (not nic.managed or nic.network in unleased)
        and not nic.ipv4
        and (one.project, one.name, nic.device) not in states
    }.values():
        with _told(failed, f"{one.project}/{one.name}: its addresses are missing"):
            states.update(read_state_addresses(driver, one))
    return dataclasses.replace(snapshot, states=states)


@contextlib.contextmanager
def _told(failed: t.Optional[Failed], what: str) -> t.Iterator[None]:
    try:
        yield
    except (ServerError, DeadlinePassed) as e:
        if failed is None:
            raise
        failed(f"{what}: {e}")
