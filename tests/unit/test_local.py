# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of the controller."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.plugin_utils import _local


def test_a_new_file_has_the_mode_of_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:

        def refused(_mask: int) -> int:
            raise AssertionError("another thread would have seen it")

        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", refused)
            with _local.replacing(os.fsencode(tmp_path / "file")) as file:
                file.write(b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert (tmp_path / "file").read_bytes() == b"content"
