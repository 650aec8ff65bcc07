# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells which versions ran, and which could not."""

from __future__ import annotations

import pytest

from ansible_collections.mage.lxd.tests.cores import environments


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Also where few words are wanted."""
    for core in environments.cores():
        terminalreporter.write_line(f"{core.folder.name}: {core.version}, {core.python}")
    for words in environments.left_out():
        terminalreporter.write_line(words)
