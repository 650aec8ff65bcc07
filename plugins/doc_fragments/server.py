# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options that say where the server is. Their one specification is ``module_utils/_server/options.py``."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that modules and plugins share.

    All extend ``mage.lxd.server``. A module extends ``mage.lxd.server.library`` as well; a plugin that takes the
    options from a host's variables, ``mage.lxd.server.variables``.
    """

    DOCUMENTATION = r"""
options:
  endpoint:
    description:
      - "Where the server is: V(unix:///path/of/unix.socket) (a bare path is a socket), V(https://host:8443),
        V(ssh://user@host:port) (the socket of that host, by OpenSSH; a path after it names another socket than the
        usual ones), or V(lxc:REMOTE) and V(incus:REMOTE), a remote of the client program's configuration."
      - "Without it: the first of these that is set, where the module or plugin runs: C(LXD_SOCKET), C(INCUS_SOCKET),
        C(LXD_DIR) and C(INCUS_DIR) (folders that hold C(unix.socket))."
      - Without those, the socket of the local LXD or Incus, of the distribution's package or of the snap. Where both
        servers are on one machine, O(endpoint) must say which one.
      - The local socket gives whoever may use it all rights on the machine.
    type: str
  driver:
    description:
      - V(rest) speaks with the server itself, V(cli) by the client program C(lxc) or C(incus).
      - V(auto) takes V(rest). A module takes V(cli) where pylxd is not installed, which its V(rest) needs.
    type: str
    choices: [auto, rest, cli]
    default: auto
  project:
    description:
      - The project of the server. Without it, the one that the remote of O(endpoint) says, or else V(default).
    type: str
  via:
    description:
      - Names of instances that lead to a nested server, from the outside in. The server inside the last one is meant.
    type: list
    elements: str
    default: []
  client_cert:
    description:
      - File with the client's certificate, in PEM format. A server at C(https://) must trust it.
      - "Without it, the client program's own: C(client.crt) and C(client.key) in C(~/.config/lxc),
        C(~/snap/lxd/common/config) or C(~/.config/incus), or in the folders that C(LXD_CONF) and C(INCUS_CONF) name."
    type: path
  client_key:
    description:
      - File with the key of O(client_cert), in PEM format.
    type: path
  server_cert:
    description:
      - File with the certificate of the server at C(https://), in PEM format. The server must present this one.
      - Without it and without O(server_fingerprint) and O(trust_token), a certificate authority that the machine
        trusts must have signed the server's certificate.
    type: path
  server_fingerprint:
    description:
      - SHA-256 of the server's certificate, as C(lxc info) and C(incus info) show it. The server must present this one.
    type: str
  trust_token:
    description:
      - A token of C(lxc config trust add) or C(incus config trust add). It is used once, where the server does not
        trust the client's certificate yet. It names the server's certificate, too, which is pinned by that.
    type: str
  insecure_skip_verify:
    description:
      - Speak with a server at C(https://) whose certificate nobody has checked. Anybody on the way can read and change
        what is sent.
    type: bool
    default: false
  ssh_args:
    description:
      - Further arguments for C(ssh), such as C(-i /path/of/key), where O(endpoint) is C(ssh://).
    type: str
  timeout:
    description:
      - Seconds that one thing may take on the server, such as starting an instance.
      - A request that starts nothing gets at most 60 s, and connecting 10 s. From 600 on, a tenth and a sixtieth.
    type: int
    default: 600
"""

    LIBRARY = r"""
options: {}
requirements:
  - python >= 3.9
  - pylxd >= 2.2.10
"""

    VARIABLES = r"""
options:
  endpoint:
    env:
      - name: ANSIBLE_LXD_ENDPOINT
    ini:
      - section: lxd_connection
        key: endpoint
    vars:
      - name: ansible_lxd_endpoint
  driver:
    env:
      - name: ANSIBLE_LXD_DRIVER
    ini:
      - section: lxd_connection
        key: driver
    vars:
      - name: ansible_lxd_driver
  project:
    env:
      - name: ANSIBLE_LXD_PROJECT
    ini:
      - section: lxd_connection
        key: project
    vars:
      - name: ansible_lxd_project
  via:
    env:
      - name: ANSIBLE_LXD_VIA
    ini:
      - section: lxd_connection
        key: via
    vars:
      - name: ansible_lxd_via
  client_cert:
    env:
      - name: ANSIBLE_LXD_CLIENT_CERT
    ini:
      - section: lxd_connection
        key: client_cert
    vars:
      - name: ansible_lxd_client_cert
  client_key:
    env:
      - name: ANSIBLE_LXD_CLIENT_KEY
    ini:
      - section: lxd_connection
        key: client_key
    vars:
      - name: ansible_lxd_client_key
  server_cert:
    env:
      - name: ANSIBLE_LXD_SERVER_CERT
    ini:
      - section: lxd_connection
        key: server_cert
    vars:
      - name: ansible_lxd_server_cert
  server_fingerprint:
    env:
      - name: ANSIBLE_LXD_SERVER_FINGERPRINT
    ini:
      - section: lxd_connection
        key: server_fingerprint
    vars:
      - name: ansible_lxd_server_fingerprint
  trust_token:
    env:
      - name: ANSIBLE_LXD_TRUST_TOKEN
    ini:
      - section: lxd_connection
        key: trust_token
    vars:
      - name: ansible_lxd_trust_token
  insecure_skip_verify:
    env:
      - name: ANSIBLE_LXD_INSECURE_SKIP_VERIFY
    ini:
      - section: lxd_connection
        key: insecure_skip_verify
    vars:
      - name: ansible_lxd_insecure_skip_verify
  ssh_args:
    env:
      - name: ANSIBLE_LXD_SSH_ARGS
    ini:
      - section: lxd_connection
        key: ssh_args
    vars:
      - name: ansible_lxd_ssh_args
  timeout:
    env:
      - name: ANSIBLE_LXD_TIMEOUT
    ini:
      - section: lxd_connection
        key: timeout
    vars:
      - name: ansible_lxd_timeout
"""
