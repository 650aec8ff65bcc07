#!/usr/bin/python
# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nat
short_description: Make the host's firewall publish what instances publish
version_added: 0.1.0
author:
  - The mage.lxd contributors (!UNKNOWN)
description:
  - Reads the C(user.mage.nat) keys of all instances of one LXD or Incus server, in all its projects, and makes the
    iptables rules of the host say the same. In a cluster, it covers the instances on the member that answers.
  - M(mage.lxd.instances) writes these keys. A key that was set by hand works as well, such as
    C(lxc config set web-1 user.mage.nat '[{"extport":8080,"intport":80}]').
  - Runs on the host of the server, as root.
  - Writes only chains of its own, C(MAGE-LXD-PRE), C(MAGE-LXD-OUT), C(MAGE-LXD-POST) and C(MAGE-LXD-FWD)
    (C(MAGE-INCUS-...) for Incus), and one jump to each of them. Each table is committed whole or not at all. Chains
    that would be empty are removed, so where nothing is published, nothing is left.
  - A published port is reachable from other hosts, from the host itself by its own addresses (not by 127.0.0.1), from
    other instances, and from the instance itself. The instance sees the address of the client. Only clients on the
    instance's own network are masqueraded.
  - What this run declared and cannot have is an error, before anything is changed. What somebody else declared and
    cannot have is left out, with a warning (see RV(left_out)).
options:
  declared:
    description:
      - What M(mage.lxd.instances) returned as RV(mage.lxd.instances#module:instances), so that mistakes in it are
        errors. In check mode it stands in for what the server says.
    type: list
    elements: dict
    default: []
  nat_policy:
    description:
      - Who may publish what, a mapping with the keys below. Ports that a process of the host listens on can never be
        published.
      - "C(projects): a list of projects with C(restricted=true) that may publish. Such a project publishes nothing
        unless it is named."
      - "C(ports): a list of ports (V(8080)) and ranges (V(8000-8999)) of the host that may be published. Without it,
        all."
      - "C(interfaces): a list of interfaces of the host that ports may be published on. An entry must then say
        C(extif), or an C(extaddr) that one of them has. Without it, all."
    type: raw
  persist:
    description:
      - Whether a systemd unit, C(mage-lxd-nat-lxd.service) or C(mage-lxd-nat-incus.service), restores the chains after
        a reboot. It restores what is ours and nothing else.
      - With V(auto), it does so where systemd is PID 1. With V(true), a host without systemd is an error. With
        V(false), the unit is removed.
    type: str
    choices: [auto, 'true', 'false']
    default: auto
  state:
    description:
      - V(present) publishes what the instances' keys say.
      - V(absent) removes own chains, jumps, and the unit.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - mage.lxd.server
  - mage.lxd.server.library
  - mage.lxd.attributes
notes:
  - Ports are published over IPv4 only.
  - The rules cover all projects, whatever O(project) says. It only has to be one that there is.
  - Needs C(iptables) and C(ip) on the host, and C(conntrack) where UDP ports are published.
  - Where rules are in both C(iptables-nft) and C(iptables-legacy), the module fails.
  - Runs on one host come one after another, by a lock on C(/run/mage-lxd-nat.lock).
seealso:
  - module: mage.lxd.instances
"""

EXAMPLES = r"""
- name: Declare a web server, published on port 8080 of the host
  mage.lxd.instances:
    instances:
      - name: web-1
        image: debian/bookworm
        nat:
          - {extport: 8080, intport: 80}
  register: provisioned

- name: Publish what the instances declare
  mage.lxd.nat:
    declared: "{{ provisioned.instances }}"

- name: Publish, but only on two interfaces and in a range of ports
  mage.lxd.nat:
    declared: "{{ provisioned.instances }}"
    nat_policy:
      interfaces: [eth0, eth1]
      ports: ["80", "443", "8000-8999"]
      projects: [customer-a]

- name: Remove every rule of ours
  mage.lxd.nat:
    state: absent
"""

RETURN = r"""
rules:
  description: The ports that are published, sorted by instance.
  returned: success
  type: list
  elements: dict
  contains:
    project:
      description: The instance's project.
      type: str
    instance:
      description: The instance's name.
      type: str
    proto:
      description: V(tcp) or V(udp).
      type: str
    external:
      description: Address or interface, and port, that clients connect to. V(*) stands for every address of the host.
      type: str
    address:
      description: The instance's address.
      type: str
    port:
      description: The instance's port, or range of ports.
      type: str
  sample:
    - {address: 10.97.0.243, external: "eth0:61053", instance: dns-1, port: "53", project: default, proto: udp}
    - {address: 10.97.0.241, external: "*:61080", instance: web-1, port: "80", project: default, proto: tcp}
chains:
  description: The names of own chains, by table. Empty where nothing is published.
  returned: success
  type: dict
  sample: {filter: [MAGE-LXD-FWD], nat: [MAGE-LXD-OUT, MAGE-LXD-POST, MAGE-LXD-PRE]}
left_out:
  description: What is not published although a key asks for it. RV(left_out[].entry) is empty for a whole instance.
  returned: success
  type: list
  elements: dict
  contains:
    instance:
      description: Project and name.
      type: str
    entry:
      description: The entry's place and what it asks for.
      type: str
    reason:
      description: Why.
      type: str
  sample:
    - entry: "nat[0]: tcp port 61080"
      instance: default/web-2
      reason: "default/web-1 has it already (nat[0]: tcp port 61080)"
actions:
  description: What was done, or would be done in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    subject:
      description: A table, a bridge port, a file or the unit.
      type: str
    action:
      description: What happens to it.
      type: str
  sample:
    - {action: restore, subject: table filter}
    - {action: restore, subject: table nat}
"""

from ansible_collections.mage.lxd.plugins.module_utils import _run
from ansible_collections.mage.lxd.plugins.module_utils._nat import iptables, plan, spec


def main() -> None:
    """Run the module."""
    _run.run(_run.Job(spec.ARGUMENTS, spec.parse, iptables.observe, plan.plan, iptables.apply, plan.present))


if __name__ == "__main__":
    main()
