# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Bringing Python into an instance: what is asked, and what the answers mean."""

from __future__ import annotations

# What Ansible needs of an interpreter: python3-minimal has the file, but not these.
_IMPORTS = "import base64, ctypes, json, runpy, selectors, shutil, ssl, subprocess, sys, tempfile, zipfile"
# The oldest Python that a managed node of ansible-core 2.17 may have.
_OLDEST = (3, 7)

PROBE = (
    "sh",
    "-c",
    f"python3 -c '{_IMPORTS}; print(sys.version_info[:2] >= {_OLDEST})' 2>/dev/null || echo missing",
)


def probed(output: bytes) -> str:
    """What the probe says: ``usable``, ``missing`` or ``old``."""
    word = output.decode("utf-8", "replace").strip()
    return {"True": "usable", "False": "old"}.get(word, "missing")


# What is told of an interpreter that stays unusable.
TOLD = {
    "missing": "python3 cannot import what Ansible's modules need, even after its installation",
    "old": f"the distribution's python3 is older than {_OLDEST[0]}.{_OLDEST[1]}: take a newer image, or python: false",
}
