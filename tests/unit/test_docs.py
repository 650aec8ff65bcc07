# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The texts that users read: complete, true to the code, and with the licence on top."""

from __future__ import annotations

import ast
import re
import subprocess
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.mage.lxd.plugins.doc_fragments import server
from ansible_collections.mage.lxd.plugins.module_utils._server import options

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "plugins" / "modules").glob("*.py"))
PLUGINS = [
    *MODULES,
    *sorted((ROOT / "plugins").glob("inventory/*.py")),
    *sorted((ROOT / "plugins").glob("connection/*.py")),
]
HEADER = [
    "# Copyright: the mage.lxd contributors",
    "# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)",
    "# SPDX-License-Identifier: GPL-3.0-or-later",
]
NOTICE = "# This code is private to mage.lxd: it may change without notice."


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT / "plugins" if ROOT / "plugins" in path.parents else ROOT))


def python_files() -> list[Path]:
    """Those of the repository, new ones too."""
    argv = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return sorted(path for path in (ROOT / name for name in listed.split("\0") if name) if path.is_file())


def texts(path: Path) -> dict[str, t.Any]:
    """DOCUMENTATION, EXAMPLES and RETURN of a plugin, parsed."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        ):
            found[node.targets[0].id] = yaml.safe_load(str(node.value.value))
    return found


def test_every_module_is_in_the_action_group() -> None:
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text(encoding="utf-8"))
    assert runtime["action_groups"]["lxd"] == [path.stem for path in MODULES]


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_says_all_that_it_does(path: Path) -> None:
    found = texts(path)
    documentation = found["DOCUMENTATION"]
    assert documentation["module"] == path.stem
    assert set(documentation.get("attributes", {})) | _attributes_of_fragments(documentation) >= {
        "check_mode",
        "diff_mode",
        "idempotent",
    }
    assert found["EXAMPLES"]
    assert found["RETURN"]
    always = {name: value for name, value in found["RETURN"].items() if not value["returned"].startswith("when ")}
    assert [
        name for name, value in always.items() if value["type"] != "bool" and not {"sample", "contains"} & set(value)
    ] == []


def test_the_servers_options_are_documented_as_they_are() -> None:
    fragment = server.ModuleDocFragment
    documented = yaml.safe_load(fragment.DOCUMENTATION)["options"]
    found = {
        name: {key: option[key] for key in ("type", "elements", "choices", "default") if key in option}
        for name, option in documented.items()
    }
    assert found == {
        name: {key: value for key, value in argument.items() if key != "no_log"}
        for name, argument in options.ARGUMENTS.items()
    }
    assert yaml.safe_load(fragment.VARIABLES)["options"] == {
        name: {
            "env": [{"name": f"ANSIBLE_LXD_{name.upper()}"}],
            "ini": [{"section": "lxd_connection", "key": name}],
            "vars": [{"name": f"ansible_lxd_{name}"}],
        }
        for name in options.NAMES
    }


def _attributes_of_fragments(documentation: dict[str, t.Any]) -> set[str]:
    names: set[str] = set()
    for fragment in documentation.get("extends_documentation_fragment", []):
        file = ROOT / "plugins" / "doc_fragments" / f"{fragment.split('.')[2]}.py"
        for match in re.finditer(r'r?"""(.*?)"""', file.read_text(encoding="utf-8"), re.DOTALL):
            parsed = yaml.safe_load(match[1]) if "attributes:" in match[1] else None
            names |= set((parsed or {}).get("attributes", {}))
    return names


@pytest.mark.parametrize("path", PLUGINS, ids=ids)
def test_examples_name_this_collection_in_full(path: Path) -> None:
    assert "mage.lxd." in path.read_text(encoding="utf-8").split("EXAMPLES = ")[1].split("RETURN = ")[0]


@pytest.mark.parametrize("path", python_files(), ids=ids)
def test_a_python_file_starts_with_its_licence(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    if not lines:
        return
    lines = lines[1:] if lines[0] == "#!/usr/bin/python" else lines
    assert lines[:3] == HEADER
    assert "from __future__ import annotations" in lines
    if "module_utils" in path.parts or "plugin_utils" in path.parts:
        assert NOTICE in lines[:6]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "roles").glob("*/README.md"))]


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_a_page_links_to_what_is_there(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_a_page_names_variables_that_the_roles_have(path: Path) -> None:
    roles = "|".join(role.name for role in (ROOT / "roles").iterdir())
    named = set(re.findall(rf"\b(?:{roles})_[a-z0-9_]+", path.read_text(encoding="utf-8")))
    known: set[str] = set()
    for role in (ROOT / "roles").iterdir():
        known |= set(yaml.safe_load((role / "defaults" / "main.yml").read_text(encoding="utf-8")))
        # What a role tells the roles that follow.
        for tasks in (role / "tasks").glob("*.yml"):
            known |= set(re.findall(r"^ +(\w+): ", tasks.read_text(encoding="utf-8"), re.MULTILINE))
    assert sorted(named - known) == []


@pytest.mark.parametrize("role", ["lxd_host", "lxd_provisioning", "mageproxy"])
@pytest.mark.parametrize("page", ["README.md", "roles/{}/README.md"])
def test_a_page_has_every_variable_of_a_role_in_its_table(page: str, role: str) -> None:
    named: set[str] = set()
    for row in (ROOT / page.format(role)).read_text(encoding="utf-8").splitlines():
        cells = row.split("|")
        # What comes after the first may be written without the role.
        own = [cell for cell in cells if f"`{role}_" in cell] if row.startswith("|") else []
        for word in re.findall(r"`(\w+)`", own[0] if own else ""):
            named.add(role + word if word.startswith("_") else word)
        if own and "the other options of a server" in own[0]:
            named |= {f"{role}_{name}" for name in options.NAMES}
    known = yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text(encoding="utf-8"))
    assert sorted(set(known) - named) == []


def test_every_difference_of_the_client_programs_names_the_test_that_shows_it() -> None:
    text = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8").split("## What `driver: cli` does otherwise")[1]
    rows = re.findall(r"^\| .* \| `(\w+)` \|$", text, re.MULTILINE)
    file = ROOT / "tests" / "integration" / "test_cli_differences.py"
    tests = re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    # What is no difference is shown there, too.
    assert sorted([*rows, "test_an_image_comes_from_a_file"]) == sorted(tests)


def test_every_option_of_a_server_is_explained() -> None:
    text = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8").split("## The options")[1].split("\n## ")[0]
    first = " ".join(line.split("|")[1] for line in text.splitlines() if "|" in line)
    assert set(re.findall(r"`(\w+)`", first)) == set(options.NAMES)


def test_no_file_has_two_sides_of_a_merge() -> None:
    argv = ["git", "-C", str(ROOT), "grep", "--untracked", "-lE", "^(<{7}|>{7}) "]
    found = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")


def test_no_check_is_switched_off() -> None:
    assert list((ROOT / "tests" / "sanity").glob("ignore-*.txt")) == []
    lint = yaml.safe_load((ROOT / ".ansible-lint").read_text(encoding="utf-8"))
    assert not {"skip_list", "warn_list"} & set(lint)
    assert not (ROOT / ".ansible-lint-ignore").exists()
