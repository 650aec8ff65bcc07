# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A role's input stands in its defaults and its argument specification, and the two say the same."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible import template
from ansible.parsing.dataloader import DataLoader

ROLES = Path(__file__).resolve().parents[2] / "roles"
NAMES = sorted(path.parents[1].name for path in ROLES.glob("*/tasks/main.yml"))
# Newer versions of Ansible want to be told that a file's templates are meant as such.
TRUSTED: dict[str, t.Any] = {"trusted_as_template": True} if hasattr(template, "trust_as_template") else {}
# What a table of contents may hold: its chapters, and what is said before and after them.
INCLUDES = {
    f"ansible.builtin.{action}"
    for action in (
        "assert",
        "debug",
        "import_role",
        "import_tasks",
        "include_role",
        "include_tasks",
        "meta",
        "set_fact",
    )
}


def read(role: str, path: str) -> t.Any:
    file = ROLES / role / path
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None


def entry(role: str) -> dict[str, t.Any]:
    options: dict[str, t.Any] = read(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    return options


def tasks(role: str) -> t.Iterator[tuple[str, dict[str, t.Any]]]:
    """Every task of a role, those in blocks too, with the name of its file."""
    for path in sorted([*(ROLES / role).glob("tasks/**/*.yml"), *(ROLES / role).glob("handlers/*.yml")]):
        queue = list(yaml.safe_load(path.read_text(encoding="utf-8")) or [])
        while queue:
            task = queue.pop(0)
            yield f"{role}/{path.relative_to(ROLES / role)}", task
            for part in ("block", "rescue", "always"):
                queue += task.get(part) or []


def test_all_three_roles_are_there() -> None:
    assert NAMES == ["lxd_host", "lxd_provisioning", "mageproxy"]


@pytest.mark.parametrize("role", NAMES)
def test_defaults_are_the_argument_specification(role: str) -> None:
    defaults = read(role, "defaults/main.yml") or {}
    specified = {name: option["default"] for name, option in entry(role).items() if "default" in option}
    assert defaults == specified
    assert [name for name, value in defaults.items() if type(value) is not type(specified[name])] == []


@pytest.mark.parametrize("role", NAMES)
def test_an_option_without_a_default_is_required_or_says_so(role: str) -> None:
    open_ends = [name for name, option in entry(role).items() if "default" not in option]
    assert [name for name in open_ends if not entry(role)[name].get("required")] == []


@pytest.mark.parametrize("role", NAMES)
def test_every_option_is_described_and_carries_the_name_of_the_role(role: str) -> None:
    for name, option in entry(role).items():
        assert name.startswith(f"{role}_"), name
        assert option.get("description"), name
        assert option.get("type"), name


@pytest.mark.parametrize("role", NAMES)
def test_what_is_internal_says_so(role: str) -> None:
    internal = read(role, "vars/main.yml") or {}
    assert [name for name in internal if not name.startswith("__")] == []
    for file, task in tasks(role):
        facts = set(task.get("ansible.builtin.set_fact") or {}) - {"cacheable"}
        # A fact for the roles that follow carries the name of the role that says it.
        assert [name for name in facts if not name.startswith(("__", f"{role}_"))] == [], file
        assert task.get("register", "__").startswith("__"), file


@pytest.mark.parametrize("role", NAMES)
def test_the_tasks_are_a_table_of_contents(role: str) -> None:
    for file, task in tasks(role):
        if file == f"{role}/tasks/main.yml" and "block" not in task:
            assert len(set(task) & INCLUDES) == 1, task["name"]


@pytest.mark.parametrize("role", NAMES)
def test_every_task_has_a_name(role: str) -> None:
    for file, task in tasks(role):
        assert len(task.get("name", "").split()) >= 2, f"{file}: {task}"


@pytest.mark.parametrize("role", NAMES)
def test_a_file_of_the_controller_is_written_by_one_host_at_a_time(role: str) -> None:
    """Each reads the whole file and writes it: of five at once, the blocks of some are lost."""
    for file, task in tasks(role):
        if task.get("delegate_to") == "localhost" and "ansible.builtin.blockinfile" in task:
            assert task.get("throttle") == 1, f"{file}: {task['name']}"


@pytest.mark.parametrize(
    ("flavor", "distribution", "unit"),
    [
        ("lxd", "debian", "lxd"),
        ("lxd", "ubuntu", "snap.lxd.daemon"),
        ("incus", "debian", "incus"),
        ("incus", "ubuntu", "incus"),
    ],
)
def test_the_daemon_is_asked_for_by_the_name_of_its_unit(flavor: str, distribution: str, unit: str) -> None:
    loader = DataLoader()
    internal = loader.load_from_file(str(ROLES / "lxd_host/vars/main.yml"), **TRUSTED)
    said = {"lxd_host_flavor": flavor, "__lxd_host_found": {"distribution": distribution}}
    templar = template.Templar(loader, variables={**internal, **said})
    assert templar.template(internal["__lxd_host_service"]) == unit
    services = [task for _file, task in tasks("lxd_host") if "ansible.builtin.systemd_service" in task]
    assert services
    assert {task["ansible.builtin.systemd_service"]["name"] for task in services} == {"{{ __lxd_host_service }}"}


@pytest.mark.parametrize(
    ("lacks", "python", "expected"),
    [
        ({}, True, True),
        ({"server": None}, True, False),
        ({"preseed": {"networks": []}}, True, False),
        ({"python": {"missing": ["netaddr"]}}, True, False),
        # Whoever brings it some other way has said so.
        ({"python": {"missing": ["netaddr"]}}, False, True),
        ({"packages": ["iptables", "zstd"]}, True, False),
        ({"packages": ["zstd"]}, True, True),
    ],
)
def test_a_plan_is_made_where_there_is_what_the_modules_need(
    lacks: dict[str, t.Any], python: bool, expected: bool
) -> None:
    loader = DataLoader()
    internal = loader.load_from_file(str(ROLES / "lxd_host/vars/main.yml"), **TRUSTED)
    found = {"server": {"socket": "/s"}, "preseed": {}, "python": {"missing": []}, "packages": [], **lacks}
    templar = template.Templar(loader, variables={**internal, "lxd_host_python": python, "__lxd_host_found": found})
    assert templar.template(internal["__lxd_host_can_plan"]) is expected


@pytest.mark.parametrize(
    ("items", "defaults", "proxied"),
    [
        ([{"name": "a"}], {}, False),
        ([{"name": "a", "proxy": [{"name": "a.example.org"}]}, {"name": "b"}], {}, True),
        ([{"name": "a", "proxy": [{"name": "a.example.org"}], "state": "absent"}, {"name": "b"}], {}, False),
        ([{"name": "a", "proxy": ["/srv:/srv"]}], {}, False),
        ([{"name": "a"}], {"proxy": [{"name": "a.example.org"}]}, True),
        ([{"name": "a", "proxy": []}], {"proxy": [{"name": "a.example.org"}]}, False),
    ],
)
def test_the_proxy_is_brought_up_where_something_goes_through_it(
    items: list[dict[str, t.Any]], defaults: dict[str, t.Any], proxied: bool
) -> None:
    loader = DataLoader()
    internal = loader.load_from_file(str(ROLES / "lxd_provisioning/vars/main.yml"), **TRUSTED)
    said = {"lxd_provisioning_inventory": items, "lxd_provisioning_defaults": defaults}
    templar = template.Templar(loader, variables={**internal, **said})
    assert templar.template(internal["__lxd_provisioning_proxied"]) in (proxied, str(proxied))
