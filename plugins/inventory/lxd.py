# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: lxd
short_description: LXD and Incus instances as hosts
version_added: 0.1.0
author:
  - The mage.lxd contributors (@mage)
description:
  - Lists the instances of one or many servers, each with the connection P(mage.lxd.lxd#connection) and its server's
    options, so that it works at once. A stopped instance has the same connection and is unreachable; it is never taken
    for the controller.
  - Reads each server's list in one request (one for each project, if O(projects) names some), and the leases of each
    network once for the addresses. No instance is entered, except for the addresses on bridges that the server does
    not manage, and for what O(need) says.
  - The file's name must end in C(lxd.yml), C(lxd.yaml), C(incus.yml) or C(incus.yaml).
  - "A host has the name in the instance's key C(user.mage.inventory_name), if that is free, else the instance's. Where
    instances of two projects have one name, the one in the project V(default) keeps it, and others become
    C(NAME.PROJECT). Where hosts of two servers have one name, both become C(NAME.SERVER). The filters make no
    difference to this."
  - "Groups: C(lxd_instances) (all), C(lxd_containers) (the running containers that a list declared, as by the role
    P(mage.lxd.lxd_provisioning#role)), C(status_*), C(type_*), C(project_*), C(server_*), C(location_*) (the member of
    a cluster), C(profile_*), C(network_*), C(os_*) and C(release_*), and those that the instance's key
    C(user.mage.groups) names."
  - "Variables: C(lxd_instance), C(lxd_project), C(lxd_server), C(lxd_status), C(lxd_type), C(lxd_location),
    C(lxd_description), C(lxd_profiles), C(lxd_image), C(lxd_config), C(lxd_limits), C(lxd_devices), C(lxd_nat) and
    C(lxd_proxy) (published ports and routes), C(lxd_ipv4), C(lxd_ipv6), C(lxd_nics) with the C(network), C(hwaddr),
    C(ipv4) and C(ipv6) of each network device, and C(lxd_addresses) with the C(device), C(network), C(family),
    C(address) and C(pinned) of each address; and those in the instance's key C(user.mage.vars), a mapping in JSON."
  - C(lxd_config), C(lxd_limits) and C(lxd_devices) are as they are after profiles. Left out of C(lxd_config) are
    C(volatile.*), C(image.*), C(user.mage.*) and what cloud-init reads.
  - What the server says is data. Jinja2 expressions in it are never evaluated.
extends_documentation_fragment:
  - constructed
  - inventory_cache
options:
  plugin:
    description: Marks the file as one for this plugin.
    type: str
    required: true
    choices: [mage.lxd.lxd]
  servers:
    description:
      - The servers, if there are several. The other options of a server hold for each that does not say otherwise;
        O(name), O(endpoint) and O(via) are said for each.
    type: list
    elements: dict
    suboptions:
      name:
        description: As O(name).
        type: str
      endpoint:
        description: As O(endpoint).
        type: str
      projects:
        description: As O(projects).
        type: list
        elements: str
      project:
        description: As O(project).
        type: str
      on_unreachable:
        description: As O(on_unreachable).
        type: str
        choices: [fail, warn]
      driver:
        description: As O(driver).
        type: str
        choices: [auto, rest, cli]
      via:
        description: As O(via).
        type: list
        elements: str
      client_cert:
        description: As O(client_cert).
        type: str
      client_key:
        description: As O(client_key).
        type: str
      server_cert:
        description: As O(server_cert).
        type: str
      server_fingerprint:
        description: As O(server_fingerprint).
        type: str
      trust_token:
        description: As O(trust_token).
        type: str
      insecure_skip_verify:
        description: As O(insecure_skip_verify).
        type: bool
      ssh_args:
        description: As O(ssh_args).
        type: str
      timeout:
        description: As O(timeout).
        type: float
  name:
    description:
      - "What the server is called: the group C(server_NAME), and the ending of names that two servers have."
      - "Without it: the host in O(endpoint), the remote, or V(lxd) or V(incus) for the local one."
    type: str
  endpoint:
    description:
      - "Where the server is: V(unix:///path/of/unix.socket) (a bare path is a socket), V(https://host:8443),
        V(ssh://user@host:port) (the socket of that host, by OpenSSH), or V(lxc:REMOTE) and V(incus:REMOTE), a remote
        of the client program's configuration."
      - "Without it: the first of these that is set: C(LXD_SOCKET), C(INCUS_SOCKET), C(LXD_DIR) and C(INCUS_DIR)
        (folders that hold C(unix.socket)); else the socket of the local LXD or Incus."
    type: str
    env:
      - name: ANSIBLE_LXD_ENDPOINT
  projects:
    description:
      - The projects whose instances are listed. Those of all projects if not given.
    type: list
    elements: str
  project:
    description:
      - The same for one project.
    type: str
    env:
      - name: ANSIBLE_LXD_PROJECT
  on_unreachable:
    description:
      - Whether a server that cannot be read, or is not even there, is an error, or a warning, and only its instances
        are missing. The same for a project. What nobody could mean, as a scheme that is unknown, is always an error.
      - An answer that is not whole is not kept in a cache.
    type: str
    choices: [fail, warn]
    default: fail
  driver:
    description:
      - V(rest) speaks with the server itself, V(cli) by the client program C(lxc) or C(incus). V(auto) takes V(rest)
        wherever it can.
    type: str
    choices: [auto, rest, cli]
    default: auto
    env:
      - name: ANSIBLE_LXD_DRIVER
  via:
    description:
      - Names of instances that lead to a nested server, from the outside in. The server inside the last one is meant.
    type: list
    elements: str
    default: []
    env:
      - name: ANSIBLE_LXD_VIA
  client_cert:
    description:
      - File with the client's certificate, in PEM format. Without it, a server at C(https://) sees the client
        program's own.
      - A path that is not absolute begins in the folder of this file.
    type: str
    env:
      - name: ANSIBLE_LXD_CLIENT_CERT
  client_key:
    description:
      - File with the key of O(client_cert), in PEM format.
    type: str
    env:
      - name: ANSIBLE_LXD_CLIENT_KEY
  server_cert:
    description:
      - File with the certificate of the server at C(https://), in PEM format. The server must present this one.
      - Without it and without O(server_fingerprint), a certificate authority that the machine trusts must have signed
        the server's certificate.
    type: str
    env:
      - name: ANSIBLE_LXD_SERVER_CERT
  server_fingerprint:
    description:
      - SHA-256 of the server's certificate, as C(lxc info) and C(incus info) show it. The server must present this
        one.
    type: str
    env:
      - name: ANSIBLE_LXD_SERVER_FINGERPRINT
  trust_token:
    description:
      - A token of C(lxc config trust add) or C(incus config trust add). It is used once, where the server does not
        trust the client's certificate yet. Hosts are not told.
    type: str
    env:
      - name: ANSIBLE_LXD_TRUST_TOKEN
  insecure_skip_verify:
    description:
      - Speak with a server at C(https://) whose certificate nobody has checked. Anybody on the way can read and
        change what is sent.
    type: bool
    default: false
    env:
      - name: ANSIBLE_LXD_INSECURE_SKIP_VERIFY
  ssh_args:
    description:
      - Further arguments for C(ssh), such as C(-i /path/of/key), where O(endpoint) is C(ssh://).
    type: str
    env:
      - name: ANSIBLE_LXD_SSH_ARGS
  timeout:
    description:
      - Seconds that one thing may take on the server. A request gets at most 60 s, and connecting 10 s. From 600 on,
        a tenth and a sixtieth.
    type: float
    default: 600
    env:
      - name: ANSIBLE_LXD_TIMEOUT
  filters:
    description:
      - Which instances are hosts. All that is said here must hold; of several words for one thing, one.
      - They come before addresses, states and snapshots are read.
    type: dict
    suboptions:
      status:
        description: V(Running), V(Stopped), V(Frozen), V(Error) or what else the server may say, in any case.
        type: list
        elements: str
      type:
        description: V(container) or V(virtual-machine).
        type: list
        elements: str
      name:
        description:
          - Patterns for the instance's name, such as V(web-*). After V(~), a regular expression that fits from the
            beginning, such as V(~web-[0-9]+$).
        type: list
        elements: str
      profile:
        description: Patterns, as for O(filters.name). One of the instance's profiles must fit.
        type: list
        elements: str
      project:
        description: Patterns, as for O(filters.name). If few projects are meant, O(projects) reads less.
        type: list
        elements: str
      expression:
        description:
          - Jinja2 expressions about the host's variables. One that fails, since a variable is not there, does not hold;
            with O(strict) it is an error.
          - One that speaks of addresses, states or snapshots is evaluated when they have been read.
        type: list
        elements: str
  hostnames:
    description:
      - Jinja2 expressions for the host's name. The first that gives a name of letters, digits, dots, hyphens and
        underscores counts; without any, the name is the usual one.
      - A name that several hosts would get is given to none of them, with a warning.
    type: list
    elements: str
    default: []
  prefer:
    description:
      - Sets C(ansible_host) to the instance's first address that fits all that is said here.
    type: dict
    suboptions:
      family:
        description: V(ipv4) or V(ipv6).
        type: str
      nic:
        description: Name of the instance's network device, such as V(eth0).
        type: str
      network:
        description: The network that the address is in, such as V(192.0.2.0/24).
        type: str
  connection:
    description:
      - V(mage.lxd.lxd) enters an instance by its server. V(ssh) goes to its address, by O(prefer) or else the first.
      - With V(ssh), an instance that has no address gets C(NAME.invalid) for one, so that nobody else answers for it.
    type: str
    choices: [mage.lxd.lxd, ssh]
    default: mage.lxd.lxd
  need:
    description:
      - What is read besides the list. What an expression of this file speaks of is read without being named here.
      - V(addresses) is one request for each network (and project).
      - V(state) sets C(lxd_state), what the server says of processor, memory, disks, networks and processes. It enters
        each instance that runs, which takes the server about 4 ms for each.
      - V(snapshots) sets C(lxd_snapshots). The server tells both together, so this takes as long.
      - Without O(filters) it is still one request for each server. With them, it is one more for each instance that
        they leave.
    type: list
    elements: str
    choices: [addresses, state, snapshots]
    default: [addresses]
  restricted_projects:
    description:
      - Projects with C(restricted=true) whose instances may name groups and variables by C(user.mage.groups) and
        C(user.mage.vars). Other projects may.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
# lxd.yml: all instances of the local server
plugin: mage.lxd.lxd

---
# shop.lxd.yml: one project, with groups and variables of one's own
plugin: mage.lxd.lxd
project: shop
groups:
  web: inventory_hostname.startswith('web-')
keyed_groups:
  - prefix: memory
    key: lxd_limits.memory | default('none')
compose:
  http_port: lxd_nat[0].extport | default(80)

---
# incus.yml: the local Incus of a machine that has both servers
plugin: mage.lxd.lxd
endpoint: unix:///var/lib/incus/unix.socket

---
# racks.lxd.yml: running containers of two servers; the play goes on if the second is down
plugin: mage.lxd.lxd
servers:
  - name: rack-1
    endpoint: ssh://admin@rack-1.example.org
  - name: rack-2
    endpoint: https://rack-2.example.org:8443
    client_cert: rack-2.crt
    client_key: rack-2.key
    server_fingerprint: 9f2c0e7d1b4a58c3e6f7a8b9c0d1e2f3a4b5c6d7e8f90a1b2c3d4e5f60718293
    projects: [default, shop]
    on_unreachable: warn
filters:
  status: running
  name: ["web-*", "~db-[0-9]+$"]
  expression: lxd_config['user.team'] == 'shop'
hostnames:
  - lxd_server ~ '-' ~ lxd_instance

---
# ssh.lxd.yml: to the containers' own SSH, by their addresses in one network
plugin: mage.lxd.lxd
connection: ssh
prefer:
  family: ipv4
  network: 192.0.2.0/24
"""

import dataclasses
import hashlib
import json
import os
import re
import typing as t

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.plugins.loader import connection_loader
from ansible.utils.path import unfrackpath

from ansible_collections.mage.lxd.plugins.plugin_utils import _compiled

# For all that is imported below.
_compiled.install()

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.plugins.plugin_utils import _hosts, _inventory_file, _inventory_read, _positions

ENDINGS = ("lxd.yml", "lxd.yaml", "incus.yml", "incus.yaml")
ENVIRONMENT = {name: f"ANSIBLE_LXD_{name.upper()}" for name in options.NAMES}
SECTIONS = ("compose", "groups", "keyed_groups")
# To be raised with every change of what a cache holds: one of another version is no answer.
LISTING_FORMAT = 2
# Ansible's words for what is wrong with the options that it reads by itself, and the option that they are about.
_SETTING = re.compile(r"(?:\bsetting: |\bConfig ')(\w+)")
_ABOUT = (
    ("plugin name", "plugin"),
    ("_uri", "cache_connection"),
    ("cache dir", "cache_connection"),
    ("cache", "cache_plugin"),
)


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """The instances of one or many servers."""

    NAME = "mage.lxd.lxd"

    def verify_file(self, path: str) -> bool:
        """Whether the file's name says that it is for this plugin."""
        return bool(super().verify_file(path)) and path.endswith(ENDINGS)

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Fill the inventory from a file."""
        super().parse(inventory, loader, path, cache)
        try:
            raw = self._load(path)
            settings = self._settings(raw, path)
            self._configure(path)
            listing = self._listing(path, raw, settings, cache)
            for warning in listing["warnings"]:
                self.display.warning(_placed(path, [warning]))
            self._construct(_hosts.add(self.inventory, listing["hosts"]))
            if any(host["variables"].get("ansible_connection") == self.NAME for host in listing["hosts"]):
                # Once here, where every task's process is forked from, and not once in each of them.
                connection_loader.get(self.NAME, class_only=True)
        except _errors.MageError as e:
            # ansible-core 2.19 and newer append every cause to the message, which says it already.
            raise AnsibleParserError(_told(path, e)) from None

    def _load(self, path: str) -> dict[str, t.Any]:
        """The content of the file."""
        try:
            raw = self.loader.load_from_file(path, cache="none")
        except AnsibleError:
            where = _positions.mistake(_text(path))
            if where is None:
                raise
            raise AnsibleParserError(f"{path}:{where.line}: is no YAML: {where.what}") from None
        if not isinstance(raw, dict):
            raise _errors.InvalidInput(["must be a mapping of options, which begins with plugin: mage.lxd.lxd"])
        return raw

    def _configure(self, path: str) -> None:
        """Have Ansible take the options, and make the cache that they name."""
        try:
            self._read_config_data(path)
        except AnsibleError as e:
            told = " ".join(str(e).split())
            setting = _SETTING.search(told)
            if setting and setting[1] in self.option_definitions:
                raise _errors.InvalidInput([f"{setting[1]}: {told}"]) from e
            key = next((key for words, key in _ABOUT if words in told), None)
            raise _errors.InvalidInput([f"{key}: {told}" if key else told]) from e

    def _settings(self, raw: dict[str, t.Any], path: str) -> _inventory_file.Settings:
        environment = {name: os.environ[key] for name, key in ENVIRONMENT.items() if os.environ.get(key)}
        folder = os.path.dirname(os.path.abspath(path))
        return _inventory_file.parse(
            raw, self.option_definitions, environment, lambda file: str(unfrackpath(file, basedir=folder))
        )

    def _listing(self, path: str, raw: t.Any, settings: _inventory_file.Settings, cache: bool) -> dict[str, t.Any]:
        """What the servers say, or said when the cache was filled for a file that said the same of the same servers."""
        if not self.get_option("cache"):
            return self._read(settings)
        key = self.get_cache_key(path)
        digest = _digest(raw, settings, self._vars if self.get_option("use_extra_vars") else None)
        if cache and key in self._cache and self._cache[key].get("digest") == digest:
            kept: dict[str, t.Any] = json.loads(self._cache[key]["listing"])
            return kept
        listing = self._read(settings)
        if listing["whole"]:
            # Servers that are back in a minute would be missing for as long as the cache lasts. One text: Ansible takes
            # mappings with keys such as __ansible_type for templates and secrets of its own when it reads a cache.
            self._cache[key] = {"digest": digest, "listing": json.dumps(listing)}
        return listing

    def _read(self, settings: _inventory_file.Settings) -> dict[str, t.Any]:
        with _inventory_read.Reader(settings) as reader:
            found = _hosts.Builder(settings, self._compose, bool(self.get_option("strict"))).build(reader)
            self.display.vvv(f"{self.NAME}: {len(found.hosts)} hosts, {len(reader.requests)} requests")
        return {
            "hosts": [
                {"name": host.name, "groups": list(host.groups), "variables": dict(host.variables)}
                for host in found.hosts
            ],
            "warnings": [*reader.warnings, *found.warnings],
            "whole": not reader.warnings,
        }

    def _construct(self, names: t.Sequence[str]) -> None:
        """Variables and groups of the user's own."""
        compose, groups, keyed_groups = (self.get_option(section) or () for section in SECTIONS)
        for name in names if compose or groups or keyed_groups else ():
            host = self.inventory.get_host(name)
            for key in compose:
                one = {key: compose[key]}
                self._told_where(f"compose.{key}", self._set_composite_vars, one, host.get_vars(), name)
            variables = host.get_vars()
            for key in groups:
                one = {key: groups[key]}
                self._told_where(f"groups.{key}", self._add_host_to_composed_groups, one, variables, name)
            for index, entry in enumerate(keyed_groups):
                self._told_where(f"keyed_groups[{index}]", self._add_host_to_keyed_groups, [entry], variables, name)

    def _told_where(self, path: str, construct: t.Callable[..., None], *args: t.Any) -> None:
        # What Ansible would read once more for each entry is in the variables already.
        more = {} if path.startswith("compose.") else {"fetch_hostvars": False}
        try:
            construct(*args, strict=self.get_option("strict"), **more)
        except AnsibleError as e:
            raise _errors.InvalidInput([f"{path}: {e}"]) from None


def _told(path: str, error: _errors.MageError) -> str:
    """The error, with the file and the lines of the keys that it names."""
    return _placed(path, error.problems if isinstance(error, _errors.InvalidInput) else (str(error),))


def _placed(path: str, problems: t.Sequence[str]) -> str:
    return _positions.placed(path, _text(path), problems)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _digest(raw: t.Any, settings: _inventory_file.Settings, extra_vars: t.Any) -> str:
    """What an answer is the answer to. The environment and the client's remotes have a say in which server it is."""
    servers = [
        [one.name, one.projects, one.fails, {**dataclasses.asdict(one.options), "trust_token": None}]
        for one in settings.servers
    ]
    said = [LISTING_FORMAT, raw, servers, settings.absent, extra_vars]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
