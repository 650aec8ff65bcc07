# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports run downward only, plans do no I/O, modules hold no logic."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.mage.lxd.tests.unit import layering

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
UTILS = "ansible_collections.mage.lxd.plugins.module_utils"

# What the bad examples import.
GROUND = {
    "module_utils/_values.py": "",
    "module_utils/_server/__init__.py": "",
    "module_utils/_server/cli.py": "import subprocess",
    "module_utils/_server/snapshot.py": "from .._values import x",
    "module_utils/_run.py": "from ansible.module_utils.basic import AnsibleModule",
    "module_utils/_nat/__init__.py": "",
    "module_utils/_nat/iptables.py": "import subprocess\nfrom . import plan",
    "module_utils/_nat/plan.py": "from .._server import snapshot",
    "module_utils/_nat/deep.py": "from . import deeper",
    "module_utils/_nat/deeper.py": "import random",
    "module_utils/_proxy/__init__.py": "",
    "modules/nat.py": f"DOCUMENTATION = ''\nfrom {UTILS} import _run\ndef main() -> None:\n    _run.run()\n",
    "plugin_utils/_shared.py": "",
}


def lay(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_collection_keeps_its_layers() -> None:
    assert layering.violations(PLUGINS) == []


def test_every_wing_and_door_of_the_design_is_seen() -> None:
    files = layering.read(PLUGINS).values()
    assert {file.wing for file in files} - {""} == set(layering.WINGS)
    assert {file.util[1] for file in files if file.is_door} == set(layering.DOORS)
    assert {file.util[1] for file in files if file.must_be_pure and file.wing} == set(layering.PURE)
    assert {file.name for file in files if file.name.startswith("modules.")} >= {"modules.instances", "modules.nat"}


def test_a_good_example_passes(tmp_path: Path) -> None:
    assert layering.violations(lay(tmp_path, GROUND)) == []


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("module_utils/_server/x.py", "from .._nat import plan", "the ground floor may not import a wing"),
        ("module_utils/_server/x.py", "def f():\n    from .. import _nat", "the ground floor may not import a wing"),
        ("module_utils/_nat/x.py", "from .. import _run", "a wing may not import _run"),
        ("module_utils/_run.py", f"import {UTILS[:-13]}.modules.nat", "_run may not import a plugin"),
        ("module_utils/_x.py", "from ..plugin_utils import _shared", "the ground floor may not import a plugin"),
        ("modules/x.py", f"from {UTILS[:-13]}.modules import nat", "plugins share code in"),
        ("module_utils/_proxy/nginx.py", "from .._nat.iptables import x", "the door of another wing"),
        ("module_utils/_proxy/plan.py", "from .._nat import iptables", "the door of another wing"),
        ("module_utils/_nat/spec.py", "import subprocess", "imports subprocess: it must be pure"),
        ("module_utils/_nat/spec.py", "def f():\n    import socket", "imports socket: it must be pure"),
        ("module_utils/_nat/spec.py", "from os import path", "imports os: it must be pure"),
        ("module_utils/_nat/spec.py", "import urllib.request", "imports urllib.request: it must be pure"),
        ("module_utils/_nat/spec.py", "from .._server import cli", "loads subprocess: it must be pure"),
        ("module_utils/_nat/spec.py", "from . import iptables", "a pure file may not import a door"),
        ("module_utils/_nat/spec.py", "from . import deep", "loads random: it must be pure"),
        ("module_utils/_proxy/render.py", "import random", "imports random: it must be pure"),
        ("module_utils/_proxy/render.py", "x = datetime.datetime.now()", "asks the clock in line 1"),
        ("module_utils/_proxy/render.py", "x = open('x')", "calls open() in line 1"),
        ("module_utils/_values.py", "import time", "imports time: it must be pure"),
        ("module_utils/_nat/x.py", "import pylxd.models", "only _server does"),
        ("module_utils/_nat/x.py", "from ansible.module_utils.basic import AnsibleModule", "only _run does"),
        ("module_utils/_nat/x.py", "def f(m):\n    m.fail_json(msg='')", "uses fail_json in line 2"),
        ("modules/x.py", "def helper() -> None:\n    pass", "FunctionDef: a module holds its texts and main()"),
        ("modules/x.py", "LIMIT = 1", "Assign: a module holds its texts and main()"),
        ("modules/x.py", "def main():\n" + "    f()\n" * 16, "main() has 16 lines"),
        ("connection/x.py", "import pylxd", "loads pylxd"),
        ("connection/x.py", f"from {UTILS}._server import rest", "loads pylxd"),
    ],
)
def test_a_bad_example_fails(tmp_path: Path, path: str, text: str, problem: str) -> None:
    files = {**GROUND, "module_utils/_server/rest.py": "import pylxd", path: text}
    found = layering.violations(lay(tmp_path, files))
    name = path[:-3].replace("/", ".")
    assert any(line.startswith(f"{name}: ") and problem in line for line in found), found


def test_types_are_no_imports(tmp_path: Path) -> None:
    text = "import typing as t\nif t.TYPE_CHECKING:\n    import pylxd\n"
    assert layering.violations(lay(tmp_path, {**GROUND, "module_utils/_nat/spec.py": text})) == []
