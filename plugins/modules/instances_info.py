#!/usr/bin/python
# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: instances_info
short_description: Tell what LXD or Incus instances there are
version_added: 0.1.0
author:
  - The mage.lxd contributors (@mage)
description:
  - Lists instances with their status and addresses, in the shape that M(mage.lxd.instances) returns.
  - Writes nothing. The server is read once, and the leases of each network once.
extends_documentation_fragment:
  - mage.lxd.attributes.info
  - mage.lxd.server
  - mage.lxd.server.library
options:
  names:
    description: Only these instances. Those that do not exist are left out of the answer.
    type: list
    elements: str
  all_projects:
    description: All projects instead of O(project).
    type: bool
    default: false
  filters:
    description:
      - Which instances the answer has. All that is said here must hold; of several words for one thing, one.
      - The words are those of the inventory plugin P(mage.lxd.lxd#inventory).
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
        description: Patterns, as for O(filters.name). They need O(all_projects).
        type: list
        elements: str
  declared:
    description:
      - What M(mage.lxd.instances) returned as RV(mage.lxd.instances#module:instances).
      - In check mode it stands in for what the server says in RV(hosts), so that names to come are seen.
    type: list
    elements: dict
    default: []
  hosts_policy:
    description:
      - Who may have names in RV(hosts).
    type: dict
    suboptions:
      projects:
        description:
          - Projects with C(restricted=true) whose instances have names. Others have none unless they are named here.
        type: list
        elements: str
        default: []
seealso:
  - module: mage.lxd.instances
"""

EXAMPLES = r"""
- name: Read all instances of all projects
  mage.lxd.instances_info:
    all_projects: true
  register: found

- name: Read the web servers that run
  mage.lxd.instances_info:
    filters:
      name: web-*
      status: running

- name: Tell the address of one of them
  ansible.builtin.debug:
    msg: "{{ found.instances | selectattr('name', 'equalto', 'web-1') | map(attribute='address') | first }}"
"""

RETURN = r"""
instances:
  description: The instances, sorted by project and name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name on the server.
      type: str
    inventory_name:
      description: The name in the inventory.
      type: str
    project:
      description: The project.
      type: str
    type:
      description: V(container) or V(virtual-machine).
      type: str
    status:
      description: The status in the server's words, such as V(Running).
      type: str
    location:
      description: The cluster member that it is on.
      type: str
    groups:
      description: The groups that the inventory plugin P(mage.lxd.lxd#inventory) gives it, but for C(server_*) and what
        a project with C(restricted=true) says.
      type: list
      elements: str
    address:
      description: The first IPv4 address, or nothing.
      type: str
    addresses:
      description: All global addresses, each with C(device), C(network), C(family), C(address) and C(pinned).
      type: list
      elements: dict
    keys:
      description: The C(user.mage.*) keys.
      type: dict
  sample:
    - name: web-1
      inventory_name: web-1
      project: default
      type: container
      status: Running
      location: none
      groups: [lxd_containers, lxd_instances, profile_default, project_default, status_running, type_container]
      address: 10.97.0.2
      addresses:
        - {device: eth0, network: lxdbr0, family: 4, address: 10.97.0.2, pinned: true}
      keys:
        user.mage.hostnames: '{"for":"default/web-1","value":["shop.example.org"]}'
server:
  description: The server that answered.
  returned: success
  type: dict
  contains:
    endpoint:
      description: Where it is.
      type: str
    local:
      description: Whether it is on the host that the module ran on.
      type: bool
    flavor:
      description: V(lxd) or V(incus).
      type: str
    version:
      description: Its version.
      type: str
    name:
      description: Its name, which is that of the cluster member in a cluster.
      type: str
    fingerprint:
      description: That of its certificate. All members of a cluster have the same.
      type: str
    clustered:
      description: Whether it is a member of a cluster.
      type: bool
  sample:
    endpoint: "unix:///var/lib/lxd/unix.socket"
    local: true
    flavor: lxd
    version: 5.0.2
    name: host1
    fingerprint: 7b4a48bdc5caac71fd019b72e0ce0d0ee0481a9bc6c51e4f55ce3d8059961a43
    clustered: false
hosts:
  description: The lines for a hosts file, for every instance that we manage and that has a pinned address.
  returned: success
  type: list
  elements: dict
  contains:
    address:
      description: The pinned IPv4 address.
      type: str
    names:
      description: The instance's name and its declared hostnames.
      type: list
      elements: str
  sample:
    - {address: 10.97.0.2, names: [web-1, shop.example.org]}
"""

from ansible_collections.mage.lxd.plugins.module_utils import _run
from ansible_collections.mage.lxd.plugins.module_utils._instances import info


def main() -> None:
    """Run the module."""
    _run.run(_run.Job(info.ARGUMENTS, info.parse, info.observe, info.plan, info.apply, info.result))


if __name__ == "__main__":
    main()
