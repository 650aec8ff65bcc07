#!/usr/bin/python
# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: instances
short_description: Make a list of LXD or Incus instances true
version_added: 0.1.0
author:
  - The mage.lxd contributors (@mage)
description:
  - Creates, changes, starts, stops and deletes containers and virtual machines, a whole list in one call.
  - The server is read once, whatever the length of the list. What is true already costs nothing more.
  - What an instance publishes (its ports, its routes, its names) is written onto the instance, as C(user.mage.*) keys.
    M(mage.lxd.nat), M(mage.lxd.proxy_upstreams) and the inventory plugin read it there.
  - An instance that publishes gets a static lease. It is a copy of its profile's network device with an address, on
    the instance itself, so that later changes of that device in the profile do not reach it.
  - What is declared is enforced. What an earlier run declared and this one does not is removed, if it is still as that
    run left it. What anybody else has set is left alone.
extends_documentation_fragment:
  - mage.lxd.attributes
  - mage.lxd.server
  - mage.lxd.server.library
options:
  instances:
    description:
      - The instances. Each item is a mapping with the keys below. Every mistake in the list is told at once.
      - "C(name) (required): 1 to 63 letters, digits and hyphens. Underscores become hyphens, with a warning; the
        inventory keeps the name as given."
      - "C(state): V(started) (default), V(stopped), V(frozen), V(restarted) or V(absent)."
      - "C(image): what it is made from, needed to create it only. Text is an alias or a fingerprint on the server. An
        architecture at the end of an alias (V(debian/bookworm/amd64)) may be there or not."
      - "A mapping says one of C(alias), C(fingerprint) (its beginning will do), C(properties) or C(file). C(properties)
        match images on the server, of which the newest is taken. C(file) is an image in one file on the host that the
        module runs on: it is imported if the server has none with its SHA-256, which C(fingerprint) may say."
      - "With C(server), the URL of another server, the image is downloaded from there, once for all instances that need
        it. C(protocol) is V(simplestreams) (default), V(lxd) or V(incus). C(secret) gives access to an image that is
        not public; it needs C(fingerprint), and V(lxd) or V(incus). C(certificate) is the server's, if it is
        self-signed. C(auto_update) says whether this server keeps the image up to date. C(mode=local) takes only what
        is on this server already."
      - "C(copy_of): V(other) or V(other/snapshot), in place of C(image): a copy of an instance of the same project. It
        publishes what it declares itself, not what the other one does."
      - "C(type): V(container) (default) or V(virtual-machine). Virtual machines are planned like containers; they have
        been tried on no real server."
      - "C(profiles): a list of names, in order. Left alone if not given; the server's default is C([default])."
      - "C(config): the server's keys, such as C({limits.memory: 512MiB})."
      - "C(devices): the server's devices by name, each with its C(type)."
      - "C(description): text of one line."
      - "C(privileged), C(nesting), C(autostart): V(true) or V(false), for C(security.privileged), C(security.nesting)
        and C(boot.autostart)."
      - "C(limits): C(cpu) (a number of cores, a set such as V(0-3), or a share such as V(50%)), C(memory) (a size or a
        share), C(disk) (the size of the root device) and C(processes). Sizes may have fractions, such as V(0.5GiB). The
        disk's size stands on a copy of the profile's root device, so that later changes of that device in the profile
        do not reach it."
      - "C(instance_type): V(c2-m4) for 2 cores and 4 GiB, or the name that a cloud has for it, such as V(t2.micro) or
        V(gce:n1-standard-1). C(config) and C(limits) go first. The names are those of AWS, Azure and Google that the
        servers know; no network is asked."
      - "C(ephemeral): V(true) makes one that is deleted when it stops."
      - "C(target): the member of a cluster that a new instance comes to, or V(@group)."
      - "C(address): an address for its first network device, such as V(192.0.2.10), or a range to pick from, such as
        V(192.0.2.0/28). A mapping has C(nic) (the device), C(ipv4) and C(ipv6). IPv6 needs C(ipv6.dhcp.stateful) on
        the network. An address that another instance has is refused; one that was not had after all is an error, and
        the next run tries a restart."
      - "C(mounts): folders of the host, each V(/source:/path), V(/source:/path:ro), or a mapping with C(source),
        C(path) and C(readonly). Files have the same owners in the instance as on the host: the kernel shifts them where
        it can (C(shift), V(true) or V(false), insists). Where it cannot, the folder's owner is mapped by C(raw.idmap),
        which C(/etc/subuid) and C(/etc/subgid) must allow (C(root:1000:1)); C(owner), such as V(1000:1000), says who
        that is if the server is on another machine. Root is never mapped."
      - "With C(acl=true) a mount is neither shifted nor mapped. Access lists on the folder and all in it let the
        container's root in instead, and keep what it makes there open to the folder's owner. They stay when the mount
        goes. The module has to run where the server is."
      - "C(cloud_init): C(user_data), C(vendor_data) and C(network_config), each text or a mapping. Its values are shown
        nowhere."
      - "C(nat): published ports, each a mapping with C(extport) (the host's port or range), C(intport) (the instance's,
        the same by default), C(proto) (V(tcp), V(udp) or V(both); V(tcp) by default), C(extif) and C(extaddr) (an
        interface and an address of the host, all by default), and C(intif) (the network or device that the packets
        take). See M(mage.lxd.nat)."
      - "C(proxy): routes, each a mapping with C(name) (the hostname), C(path) (V(/) by default), C(port) (of the
        instance, V(80) by default) or C(pass) (the URL of another backend), and C(raw) (directives for nginx). See
        M(mage.lxd.proxy_upstreams).
        Text such as V(/a:/b:ro) is taken for one of C(mounts), with a warning."
      - "C(hostnames): names that are to resolve to it on the host and in the proxy."
      - "C(depends_on): names of instances that come first, and go last."
      - "C(wait_for): what has to be true before it counts as started, a list of V(address), V(cloud-init), V(system)
        (systemd is up), C({port: 5432}), C({exec: [pg_isready, -q]}) and C({address: {nic: eth0, family: 4}}). If not
        given, an address, where it has a network device; an empty list waits for nothing."
      - "C(stop): how it is stopped and restarted, a mapping. It is asked C(attempts) times (V(2)) to end within
        C(timeout) seconds (V(15), or a quarter of O(timeout) if that is less). Then it is ended with C(force=true), the
        default, and fails with V(false). C({attempts: 0}) ends it at once. What is deleted is always ended at once."
      - "C(python): V(true) brings in a Python that can run Ansible's modules, if there is none."
      - "C(recreate): V(true) allows to delete an instance and make it anew, where its type or image is another one."
    type: list
    elements: raw
    required: true
  defaults:
    description:
      - Keys that every item has which does not say otherwise; all but C(name), C(address) and C(copy_of).
      - Mappings are merged key by key, lists are not joined. What is null was not said.
    type: dict
    default: {}
  concurrency:
    description:
      - How many instances are worked on at once, so that a server has no more operations to do.
      - With more than V(1), as many more may be waiting for their addresses, or for what C(wait_for) names.
    type: int
    default: 4
  owner:
    description:
      - Which declaration the instances belong to, such as the name of a role. It is written onto them.
      - Those of the owner V(mageproxy) are left out of the inventory group C(lxd_containers).
    type: str
    default: ""
  prune:
    description: Whether to delete the instances that O(owner) declared before and that O(instances) no longer has.
    type: bool
    default: false
  restart:
    description:
      - When a running instance is restarted for a change that the server does not apply live.
      - V(never) only tells of it, V(if_required) does it where it must be, V(always) after every change.
    type: str
    choices: [never, if_required, always]
    default: if_required
  declared:
    description:
      - What an earlier task of this run returned as RV(instances). Their addresses are not given to others, in check
        mode either, where the server does not know them yet.
    type: list
    elements: dict
    default: []
seealso:
  - module: mage.lxd.instances_info
  - module: mage.lxd.nat
  - module: mage.lxd.proxy_upstreams
"""

EXAMPLES = r"""
- name: Run two containers, the first one published
  mage.lxd.instances:
    instances:
      - name: web-1
        image: debian/bookworm
        config:
          limits.memory: 512MiB
        nat:
          - extport: 8080
            intport: 80
        proxy:
          - name: shop.example.org
      - name: db-1
        image: debian/bookworm
        state: stopped

- name: Run a list of workers of one image, eight at a time
  mage.lxd.instances:
    instances: "{{ workers }}"
    defaults:
      image: debian/bookworm
      python: true
    concurrency: 8

- name: Run a database with limits, files of the host, and an address of its own
  mage.lxd.instances:
    instances:
      - name: db-2
        image:
          alias: debian/12
          server: https://images.example.org
        instance_type: t2.small
        limits:
          disk: 20GiB
        mounts:
          - /srv/backups:/backups
        address: 10.97.0.20
        cloud_init:
          user_data:
            packages: [postgresql]
        wait_for:
          - cloud-init
          - port: 5432

- name: Remove one
  mage.lxd.instances:
    instances:
      - name: db-1
        state: absent
"""

RETURN = r"""
instances:
  description: The items, in the order of the input. In check mode, as they will be.
  returned: success, and when some instances failed
  type: list
  elements: dict
  contains:
    name:
      description: The instance's name on the server.
      type: str
    inventory_name:
      description: The name as it was given.
      type: str
    project:
      description: The project.
      type: str
    type:
      description: V(container) or V(virtual-machine).
      type: str
    status:
      description: The status in the server's words, such as V(Running) or V(Stopped). V(Absent) if it is not there.
      type: str
    location:
      description: The cluster member that it is on.
      type: str
    groups:
      description: The groups that the inventory plugin P(mage.lxd.lxd#inventory) gives it, but for C(server_*) and what
        a project with C(restricted=true) says.
      type: list
      elements: str
    changed:
      description: Whether anything was done to it.
      type: bool
    actions:
      description: What was done, out of V(create), V(update), V(start), V(stop), V(restart), V(freeze),
        V(unfreeze), V(kill), V(delete), V(wait) and V(python).
      type: list
      elements: str
    address:
      description: Its first IPv4 address, or nothing.
      type: str
    addresses:
      description: All its global addresses.
      type: list
      elements: dict
      contains:
        device:
          description: The network device.
          type: str
        network:
          description: The network that it is on.
          type: str
        family:
          description: 4 or 6.
          type: int
        address:
          description: The address.
          type: str
        pinned:
          description: Whether the server keeps this address for it.
          type: bool
    keys:
      description: Its C(user.mage.*) keys.
      type: dict
    error:
      description: Why it is not as declared, or nothing.
      type: str
    restart_required:
      description: What of its config and devices it has not taken up before its next start.
      type: list
      elements: str
  sample:
    - name: web-1
      inventory_name: web-1
      project: default
      type: container
      status: Running
      location: none
      groups: [lxd_containers, lxd_instances, profile_default, project_default, status_running, type_container]
      changed: true
      actions: [create, start, python]
      address: 10.97.0.2
      addresses:
        - {device: eth0, network: lxdbr0, family: 4, address: 10.97.0.2, pinned: true}
      keys:
        user.mage.nat: '{"for":"default/web-1","value":[{"extport":8080,"intport":80,"proto":"tcp"}]}'
      error: ""
      restart_required: []
actions:
  description: What was done, or will be in check mode.
  returned: always
  type: list
  elements: dict
  contains:
    subject:
      description: The object.
      type: str
    action:
      description: What happens to it.
      type: str
  sample:
    - {subject: instance default/web-1, action: "create, start, python"}
failures:
  description: Why instances are not as declared.
  returned: when some instances failed
  type: list
  elements: str
missing:
  description: What the list needs and an earlier step may be going to bring, such as images. In a run that is not in
    check mode it is an error.
  returned: when there is any, in check mode
  type: list
  elements: str
problems:
  description: Every mistake in the input, each with the path of its field.
  returned: when the input is invalid
  type: list
  elements: str
"""

from ansible_collections.mage.lxd.plugins.module_utils import _run
from ansible_collections.mage.lxd.plugins.module_utils._instances import apply, plan, spec


def main() -> None:
    """Run the module."""
    _run.run(_run.Job(spec.ARGUMENTS, spec.parse, apply.observe, plan.plan, apply.apply, apply.result, spec.hidden))


if __name__ == "__main__":
    main()
