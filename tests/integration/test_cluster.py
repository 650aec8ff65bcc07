# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster of one member, which is an LXD of the test's own: where instances are, and where they are to be."""

from __future__ import annotations

import json
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.tests.integration import playbook
from ansible_collections.mage.lxd.tests.integration.engine import Engine
from ansible_collections.mage.lxd.tests.integration.own_daemon import own_daemon

MEMBER = "rack-1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Engine]:
    with own_daemon("lxd", tmp_path_factory.mktemp("own")) as made:
        made.machine.run("lxc", "config", "set", "core.https_address", "127.0.0.1:8443")
        made.machine.run("lxc", "cluster", "enable", MEMBER)
        yield made.engine()


def test_a_new_instance_comes_to_the_member_that_is_named(cluster: Engine) -> None:
    item = cluster.item("named", state="stopped", target=MEMBER)
    assert cluster.good(item).changed
    assert cluster.get("named")["location"] == MEMBER
    assert not cluster.good(item).changed
    for target, words in (("rack-2", "Cluster member not found"), ("@rack-2", 'Cluster group "rack-2" doesn\'t exist')):
        refused = cluster.run(cluster.item("other", state="stopped", target=target)).failures
        assert len(refused) == 1
        assert refused[0].startswith(f"default/{cluster.name('other')}: ")
        assert words in refused[0]
        assert cluster.status("other") == "Absent"
    with pytest.raises(_errors.InvalidInput, match=r"^instances\[0\]\.target: \"a b\": must be the name of a member"):
        cluster.run(cluster.item("other", target="a b"))


def test_the_inventory_has_a_group_and_a_variable_of_the_member(cluster: Engine, tmp_path: Path) -> None:
    cluster.good(cluster.item("listed", state="stopped"))
    path = tmp_path / "lxd.yml"
    path.write_text(f"plugin: mage.lxd.lxd\nendpoint: {cluster.options.endpoint}\n", encoding="utf-8")
    argv = [str(playbook.BIN / "ansible-inventory"), "-i", str(path), "--list"]
    environment = playbook.ansible_environment(ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1")
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout, object_hook=lambda value: value.get("__ansible_unsafe", value))
    host = cluster.name("listed")
    assert found["_meta"]["hostvars"][host]["lxd_location"] == MEMBER
    assert host in found["location_rack_1"]["hosts"]
