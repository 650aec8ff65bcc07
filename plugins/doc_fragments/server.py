# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options that say where the server is. Their one specification is ``module_utils/_server/options.py``."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that the modules share."""

    DOCUMENTATION = r"""
options:
  endpoint:
    description:
      - Where the server is, V(unix:///path/of/unix.socket) or V(https://host:8443). A bare path is a socket.
      - "Without it: the first of these that is set, where the module runs: C(LXD_SOCKET), C(INCUS_SOCKET), C(LXD_DIR)
        and C(INCUS_DIR) (folders that hold C(unix.socket))."
      - Without those, the socket of the local LXD or Incus, of the distribution's package or of the snap. Where both
        servers are on one machine, O(endpoint) must say which one.
      - The local socket gives whoever may use it all rights on the machine.
    type: str
  project:
    description:
      - The project of the server.
    type: str
    default: default
  client_cert:
    description:
      - File with the client's certificate, in PEM format. Needed for a server at C(https://).
    type: path
  client_key:
    description:
      - File with the key of O(client_cert), in PEM format. Needed for a server at C(https://).
    type: path
  server_cert:
    description:
      - File with the certificate of the server at C(https://), in PEM format. The server must present this one.
      - Without it, a certificate authority that the machine trusts must have signed the server's certificate.
    type: path
requirements:
  - python >= 3.9
  - pylxd >= 2.2.10
"""
