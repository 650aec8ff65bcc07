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
  - Lists the instances of a server, each with the connection P(mage.lxd.lxd#connection), so that it works at once. A
    stopped instance has the same connection and is unreachable; it is never taken for the controller.
  - Reads the server once, and the leases of each network once for the addresses. No instance is entered, except for
    the addresses on bridges that the server does not manage.
  - The file's name must end in C(lxd.yml), C(lxd.yaml), C(incus.yml) or C(incus.yaml).
  - "A host has the name in the instance's key C(user.mage.inventory_name), if that is free, else the instance's. Where
    instances of two projects have one name, the one in the project V(default) keeps it, and others become
    C(NAME.PROJECT)."
  - "Groups: C(lxd_instances) (all), C(lxd_containers) (the running containers that a list declared, as by the role
    P(mage.lxd.lxd_provisioning#role)), C(status_*), C(type_*), C(project_*), C(profile_*), C(os_*) and C(release_*)."
  - "Variables: C(lxd_instance), C(lxd_project), C(lxd_status), C(lxd_type), C(lxd_location), C(lxd_description),
    C(lxd_profiles), C(lxd_image), C(lxd_ipv4), C(lxd_ipv6), and C(lxd_addresses) with the C(device), C(network),
    C(family), C(address) and C(pinned) of each."
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
  endpoint:
    description:
      - Where the server is, V(unix:///path/of/unix.socket) or V(https://host:8443).
      - "Without it: the first of these that is set: C(LXD_SOCKET), C(INCUS_SOCKET), C(LXD_DIR) and C(INCUS_DIR)
        (folders that hold C(unix.socket)); else the socket of the local LXD or Incus."
    type: str
    env:
      - name: ANSIBLE_LXD_ENDPOINT
  project:
    description: The project whose instances are listed. Those of all projects if not given.
    type: str
    env:
      - name: ANSIBLE_LXD_PROJECT
  client_cert:
    description: File with the client's certificate, in PEM format. Needed for a server at C(https://).
    type: path
    env:
      - name: ANSIBLE_LXD_CLIENT_CERT
  client_key:
    description: File with the key of O(client_cert), in PEM format. Needed for a server at C(https://).
    type: path
    env:
      - name: ANSIBLE_LXD_CLIENT_KEY
  server_cert:
    description:
      - File with the certificate of the server at C(https://), in PEM format. The server must present this one.
      - Without it, a certificate authority that the machine trusts must have signed the server's certificate.
    type: path
    env:
      - name: ANSIBLE_LXD_SERVER_CERT
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
  - prefix: network
    key: lxd_addresses | map(attribute='network') | unique
compose:
  ansible_host: lxd_ipv4 | first

---
# incus.yml: the local Incus of a machine that has both servers
plugin: mage.lxd.lxd
endpoint: unix:///var/lib/incus/unix.socket
"""

import dataclasses
import typing as t

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

from ansible_collections.mage.lxd.plugins.module_utils import _errors, _inventory
from ansible_collections.mage.lxd.plugins.module_utils._server import options, snapshot
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import api
from ansible_collections.mage.lxd.plugins.module_utils._values import Problems, nearest, show
from ansible_collections.mage.lxd.plugins.plugin_utils import _trust

ENDINGS = ("lxd.yml", "lxd.yaml", "incus.yml", "incus.yaml")
SERVER_OPTIONS = ("endpoint", "project", "client_cert", "client_key", "server_cert")


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """The instances of one server."""

    NAME = "mage.lxd.lxd"

    def verify_file(self, path: str) -> bool:
        """Whether the file's name says that it is for this plugin."""
        return bool(super().verify_file(path)) and path.endswith(ENDINGS)

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Fill the inventory from a file."""
        super().parse(inventory, loader, path, cache)
        try:
            self._check_keys(self._read_config_data(path))
            listing = self._listing(path, cache)
        except _errors.MageError as e:
            # ansible-core 2.19 and newer append every cause to the message, which says it already.
            raise AnsibleParserError(f"{path}: {e}") from None
        for warning in listing["warnings"]:
            self.display.warning(f"{path}: {warning}")
        for host in listing["hosts"]:
            try:
                self._add(host)
            except AnsibleError as e:
                raise AnsibleParserError(f"{path}: {host['name']}: {e}") from None

    def _check_keys(self, config: t.Mapping[str, t.Any]) -> None:
        problems = Problems()
        known = self.option_definitions
        for key in config:
            if key not in known:
                hint = nearest(str(key), known) or "; known are " + ", ".join(sorted(known))
                problems.add_text(f"{key}: unknown key{hint}")
        problems.raise_if_any()

    def _listing(self, path: str, cache: bool) -> dict[str, t.Any]:
        """What the server says, or said when the cache was filled."""
        self.load_cache_plugin()
        key = self.get_cache_key(path)
        if self.get_option("cache") and cache and key in self._cache:
            return dict(self._cache[key])
        listing = self._read()
        if self.get_option("cache"):
            self._cache[key] = listing
        return listing

    def _read(self) -> dict[str, t.Any]:
        server = options.parse({name: self.get_option(name) for name in SERVER_OPTIONS})
        driver = CoreDriver(server)
        try:
            project = self.get_option("project")
            seen = snapshot.read(driver, project, lambda one: True)
            if project and not seen.instances:
                # The server answers with an empty list for a project that is not there.
                self._check_project(driver, project)
        finally:
            driver.close()
        listing = _inventory.hosts(seen, server.endpoint)
        return {"hosts": [dataclasses.asdict(host) for host in listing.hosts], "warnings": list(listing.warnings)}

    def _check_project(self, driver: CoreDriver, project: str) -> None:
        try:
            driver.request("GET", api("projects", project))
        except _errors.NotFound as e:
            raise _errors.InvalidInput([f"project: {show(project)}: there is none on {driver.endpoint}"]) from e

    def _add(self, host: t.Mapping[str, t.Any]) -> None:
        strict = self.get_option("strict")
        # Its characters are checked, so that it can be no template; marked, it would be listed as a mapping.
        name = str(host["name"])
        self.inventory.add_host(name)
        for group in host["groups"]:
            self.inventory.add_group(group)
            self.inventory.add_host(name, group=group)
        for key, value in host["variables"].items():
            self.inventory.set_variable(name, key, _trust.as_data(value))
        self._set_composite_vars(self.get_option("compose"), self._variables(name), name, strict=strict)
        variables = self._variables(name)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)

    def _variables(self, name: str) -> dict[str, t.Any]:
        return dict(self.inventory.get_host(name).get_vars())
