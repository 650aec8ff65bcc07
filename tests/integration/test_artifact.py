# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users install: built from this checkout, put into an empty path outside of it, and used there."""

from __future__ import annotations

import json
import subprocess
import tarfile
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.tests.integration.playbook import BIN, ROOT, ansible_environment

TOP = {
    "CHANGELOG.rst",
    "FILES.json",
    "LICENSE",
    "MANIFEST.json",
    "README.md",
    "changelogs",
    "docs",
    "examples",
    "meta",
    "playbooks",
    "plugins",
    "requirements.txt",
    "roles",
}
KINDS = {"modules": "module", "inventory": "inventory", "connection": "connection"}
PLUGINS = sorted(
    (kind, path.stem)
    for folder, kind in KINDS.items()
    for path in (ROOT / "plugins" / folder).glob("*.py")
    if path.stem != "__init__"
)
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


def call(folder: Path, *argv: str) -> str:
    """Run a tool in a folder where nothing but the installed collection can be found."""
    own = folder / "ansible.cfg"
    own.touch()
    environment = ansible_environment(ANSIBLE_COLLECTIONS_PATH=str(folder / "collections"), ANSIBLE_CONFIG=str(own))
    done = subprocess.run(
        [str(BIN / argv[0]), *argv[1:]],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout with artifact/*.tar.gz and collections/, where it is installed."""
    folder = tmp_path_factory.mktemp("user")
    call(folder, "ansible-galaxy", "collection", "build", str(ROOT), "--output-path", str(folder / "artifact"))
    (artifact,) = (folder / "artifact").iterdir()
    call(folder, "ansible-galaxy", "collection", "install", str(artifact), "--collections-path", "collections")
    return folder


def test_the_artifact_holds_the_collection_and_nothing_else(installed: Path) -> None:
    (artifact,) = (installed / "artifact").iterdir()
    with tarfile.open(artifact) as archive:
        names = archive.getnames()
        odd = [member.name for member in archive if not (member.isfile() or member.isdir())]
    assert {name.split("/")[0] for name in names} == TOP
    assert odd == []
    assert [name for name in names if name.endswith((".pyc", ".tar.gz")) or "/." in name] == []


def test_the_artifact_holds_every_committed_file_of_the_collection(installed: Path) -> None:
    argv = ["git", "-C", str(ROOT), "ls-files", "-z", "plugins", "roles", "meta", "playbooks", "docs", "examples"]
    committed = set(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split("\0")) - {""}
    there = installed / "collections" / "ansible_collections" / "mage" / "lxd"
    assert [name for name in sorted(committed) if (ROOT / name).exists() and not (there / name).exists()] == []


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_a_plugin_is_documented_where_it_is_installed(installed: Path, kind: str, name: str) -> None:
    said = json.loads(call(installed, "ansible-doc", "--json", "--type", kind, f"mage.lxd.{name}"))
    documentation = said[f"mage.lxd.{name}"]
    assert documentation["doc"]["short_description"]
    assert documentation["examples"]
    assert kind != "module" or documentation["return"]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_documented_where_it_is_installed(installed: Path, role: str) -> None:
    said: dict[str, t.Any] = json.loads(call(installed, "ansible-doc", "--json", "--type", "role", f"mage.lxd.{role}"))
    assert said[f"mage.lxd.{role}"]["entry_points"]["main"]["options"]
