# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules say of check mode, diff mode and idempotence."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that the modules share.

    A module that changes things extends ``mage.lxd.attributes``; one that only reads, ``mage.lxd.attributes.info``.
    """

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff
      mode.
    support: full
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no
      change.
    support: full
  action_group:
    description: Use C(group/mage.lxd.lxd) in C(module_defaults) to set the options of the server once.
    support: full
    membership:
      - mage.lxd.lxd
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
    support: full
    details:
      - This module only reads.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff
      mode.
    support: N/A
    details:
      - This module only reads.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no
      change.
    support: full
    details:
      - This module only reads.
  action_group:
    description: Use C(group/mage.lxd.lxd) in C(module_defaults) to set the options of the server once.
    support: full
    membership:
      - mage.lxd.lxd
"""
