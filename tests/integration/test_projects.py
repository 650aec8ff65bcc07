# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Projects: one that there is not, said to each module, and one that is restricted."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.mage.lxd.tests.integration import doors, server

MODULES: dict[str, dict[str, t.Any]] = {
    "mage.lxd.instances": {"instances": [{"name": "mt-of-no-project", "image": doors.IMAGE}]},
    "mage.lxd.instances_info": {},
    "mage.lxd.nat": {},
    "mage.lxd.proxy_upstreams": {},
}


@pytest.mark.parametrize("name", ["lxd", "incus"])
@pytest.mark.parametrize("driver", ["rest", "cli"])
def test_a_project_that_is_not_there_is_told_before_anything_is_written(
    name: str, driver: str, doors: doors.Doors, run_playbook: t.Any
) -> None:
    host, way = doors.way(name)
    text = "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
    for module, arguments in MODULES.items():
        said = {**arguments, "endpoint": way.endpoint, "project": "no-such", "driver": driver}
        text += f"    - name: {module}\n      {module}: {json.dumps(said)}\n      ignore_errors: true\n"
    run = run_playbook(text)
    for module in MODULES:
        result = run.result(module)
        (problem,) = result["problems"]
        assert problem.startswith('project: "no-such": there is no such project (there are ')
        assert "default" in problem
        assert result["msg"] == f"Nothing was changed: {problem}"
    assert not any("no-such" in path for path in host.query("/1.0/projects"))
    assert not any("mt-of-no-project" in path for path in host.query("/1.0/instances?all-projects=true"))


@pytest.mark.parametrize("name", ["lxd", "incus"])
def test_instances_of_a_restricted_project_name_no_groups(name: str, doors: doors.Doors, run_playbook: t.Any) -> None:
    """Whoever may write there would choose which plays run on them."""
    host, way = doors.way(name)
    project = server.own_prefix()
    host.run("project", "create", project, "-c", "restricted=true", "-c", "features.images=false")
    text = "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
    # The project's own profile has no root device.
    pool = host.query("/1.0/profiles/default")["devices"]["root"]["pool"]
    try:
        for place in (project, "default"):
            more = ("--project", place, "--storage", pool, "-c", "user.mage.groups=prod")
            host.run("init", host.image, project, *more)
            said = {"endpoint": way.endpoint, "project": place}
            make = {**said, "instances": [{"name": project, "state": "stopped", "description": "changed"}]}
            text += f"    - name: check {place}\n      mage.lxd.instances: {json.dumps(make)}\n      check_mode: true\n"
            text += f"    - name: make {place}\n      mage.lxd.instances: {json.dumps(make)}\n"
            text += (
                f"    - name: ask {place}\n      mage.lxd.instances_info: {json.dumps({**said, 'names': [project]})}\n"
            )
        run = run_playbook(text).succeeded()
        for place in (project, "default"):
            for step in ("check", "make", "ask"):
                (found,) = run.result(f"{step} {place}")["instances"]
                assert f"project_{place}".replace("-", "_") in found["groups"]
                assert ("prod" in found["groups"]) == (place == "default"), step
    finally:
        for place in (project, "default"):
            name = host.run("list", "--project", place, "-f", "csv", "-c", "n", f"^{project}$").strip()
            if name:
                host.run("delete", "-f", "--project", place, name)
        host.run("project", "delete", project)
