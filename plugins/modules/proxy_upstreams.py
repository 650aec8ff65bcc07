#!/usr/bin/python
# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: proxy_upstreams
short_description: Make an nginx serve the routes of LXD or Incus instances
version_added: 0.1.0
author:
  - The mage.lxd contributors (@mage)
description:
  - Reads the routes (C(user.mage.proxy)) of all instances of all projects, and makes the nginx in one instance, the
    proxy, serve just those. A route that is gone from the server is gone from nginx.
  - The whole configuration is written beside the one that is served, tested with C(nginx -t), swapped in by one
    rename, and loaded without a restart. Then nginx is asked for every vhost. If anything fails, the former
    configuration stays, or comes back, and the error names the vhost.
  - Changes by hand in nginx's folder are undone by the next run. A C(nginx.conf) that was there before is kept in
    C(mage/before) of that folder.
  - The instances stand in the proxy's C(/etc/hosts), in a marked block. Other lines are left alone.
  - What this run declared wrongly is an error, and nothing is changed. What is wrong on other instances is left out
    with a warning, and blocks nobody.
  - Instances of one project that publish the same name and path, with the same port, share its requests.
  - An unknown host's connection is closed without an answer.
extends_documentation_fragment:
  - mage.lxd.attributes
  - mage.lxd.server
  - mage.lxd.server.library
options:
  project:
    description:
      - The project that the proxy's instance is in. Routes are read from all projects.
  instance:
    description:
      - The instance that nginx runs in.
    type: str
    default: mageproxy
  declared:
    description:
      - What M(mage.lxd.instances) has just returned as RV(mage.lxd.instances#module:instances). Mistakes of these
        instances are errors. In check mode they count as they will be.
    type: list
    elements: dict
    default: []
  proxy_policy:
    description:
      - Who may publish what, a mapping with the keys below.
      - "C(projects): a list of restricted projects whose instances may publish routes and names. They publish
        themselves only, and never a hostname that another project publishes."
      - "C(allow_raw): V(true) takes C(raw) of a route, which holds directives for nginx as they are. Whoever may write
        an instance's keys can then make the proxy read its files and reach its networks."
    type: raw
  config_dir:
    description:
      - The folder of nginx's configuration in the instance.
    type: str
    default: /etc/nginx
  install:
    description:
      - Install nginx in the instance if it is missing, with the package manager that is there.
    type: bool
    default: true
seealso:
  - module: mage.lxd.instances
  - module: mage.lxd.nat
"""

EXAMPLES = r"""
- name: Declare two containers that share a route
  mage.lxd.instances:
    instances:
      - name: web-1
        image: debian/bookworm
        proxy:
          - name: shop.example.org
      - name: web-2
        image: debian/bookworm
        proxy:
          - name: shop.example.org
          - name: shop.example.org
            path: /api/
            pass: http://192.0.2.10:8080/v1/
  register: provisioned

- name: Serve them
  mage.lxd.proxy_upstreams:
    instance: mageproxy
    declared: "{{ provisioned.instances }}"

- name: Bring nginx to what the server says, whoever wrote it
  mage.lxd.proxy_upstreams:
"""

RETURN = r"""
vhosts:
  description: What is served, or will be in check mode, sorted by name and path.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The hostname.
      type: str
    path:
      description: The path that requests begin with.
      type: str
    servers:
      description: Where requests go, as address and port. Empty if no address is known; requests are then answered 502.
      type: list
      elements: str
    instances:
      description: The instances that publish it, as project and name.
      type: list
      elements: str
  sample:
    - name: shop.example.org
      path: /
      servers: ["10.97.0.2:80", "10.97.0.3:80"]
      instances: [default/web-1, default/web-2]
left_out:
  description: What instances publish and is not served.
  returned: always
  type: list
  elements: dict
  contains:
    instance:
      description: The instance, as project and name.
      type: str
    reason:
      description: Why.
      type: str
  sample:
    - instance: default/old
      reason: 'user.mage.proxy[0].name: "a b": must be a hostname, such as shop.example.org'
actions:
  description: What was done, or will be in check mode.
  returned: always
  type: list
  elements: dict
  contains:
    subject:
      description: The file, or nginx.
      type: str
    action:
      description: What happens to it.
      type: str
  sample:
    - subject: mageproxy:/etc/nginx/upstream.conf
      action: changed
problems:
  description: Every mistake in what was declared. Nothing was changed.
  returned: when the input is invalid
  type: list
  elements: str
"""

from ansible_collections.mage.lxd.plugins.module_utils import _run
from ansible_collections.mage.lxd.plugins.module_utils._proxy import nginx, plan, spec


def main() -> None:
    """Run the module."""
    _run.run(_run.Job(spec.ARGUMENTS, spec.parse, nginx.observe, plan.plan, nginx.apply, nginx.result))


if __name__ == "__main__":
    main()
