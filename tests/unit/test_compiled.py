# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is imported for every task comes from Python's cache of compiled code, and never from an outdated one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import sys
from ansible.plugins.loader import connection_loader, init_plugin_loader
init_plugin_loader()
assert connection_loader.get("mage.lxd.lxd", class_only=True)
core = sys.modules["ansible_collections.mage.lxd.plugins.module_utils._server.core"]
print(core.__cached__, getattr(core, "MARK", "no mark"))
"""

LIST = """
import sys
from ansible import constants
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, inventory_loader
init_plugin_loader()
plugin = inventory_loader.get("mage.lxd.lxd")
host = {"name": "web-1", "groups": [], "variables": {"ansible_connection": sys.argv[2]}}
plugin._listing = lambda *_args: {"hosts": [host], "warnings": []}
plugin.parse(InventoryData(), DataLoader(), sys.argv[1])
print(*[name for name in constants.config._plugins.get("connection", {}) if ".mage.lxd." in name])
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The collection in a folder of its own, as a user has it."""
    target = tmp_path / "ansible_collections" / "mage" / "lxd"
    for name in ("plugins", "meta"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "galaxy.yml", target)
    return target


def run(copy: Path, script: str, *arguments: str, **environment: str) -> str:
    """Run a script in a process of its own, with that collection. Returns what it printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    told = {"ANSIBLE_COLLECTIONS_PATH": str(copy.parents[2]), "ANSIBLE_LOCALHOST_WARNING": "0", **environment}
    argv = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(argv, env={**kept, **told}, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def load(copy: Path, **environment: str) -> list[str]:
    """Load the connection plugin; returns where a utility's code is kept, and the mark in it."""
    return run(copy, LOAD, **environment).split(" ", 1)


def test_utilities_are_compiled_once_and_again_when_they_change(copy: Path) -> None:
    source = copy / "plugins" / "module_utils" / "_server" / "core.py"
    cached, mark = load(copy)
    assert (Path(cached).parent, mark) == (source.parent / "__pycache__", "no mark")
    first = Path(cached).stat().st_mtime_ns
    assert load(copy) == [cached, "no mark"]
    assert Path(cached).stat().st_mtime_ns == first
    source.write_text(source.read_text(encoding="utf-8") + "\nMARK = 'changed'\n", encoding="utf-8")
    assert load(copy) == [cached, "changed"]


def test_utilities_load_where_nothing_is_to_be_written(copy: Path) -> None:
    assert load(copy, PYTHONDONTWRITEBYTECODE="1")[1] == "no mark"
    assert not list(copy.rglob("module_utils/**/__pycache__"))


@pytest.mark.parametrize(("connection", "loaded"), [("mage.lxd.lxd", True), ("ssh", False)])
def test_the_inventory_loads_the_connection_before_tasks_are_forked(
    copy: Path, tmp_path: Path, connection: str, loaded: bool
) -> None:
    path = tmp_path / "lxd.yml"
    path.write_text("plugin: mage.lxd.lxd\nendpoint: unix:///nowhere\n", encoding="ascii")
    assert bool(run(copy, LIST, str(path), connection)) == loaded
