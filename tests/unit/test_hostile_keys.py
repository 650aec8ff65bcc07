# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever may write an instance's keys may write anything: it never breaks what others publish."""

from __future__ import annotations

import json

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _hosts, _inventory, _keys
from ansible_collections.mage.lxd.plugins.module_utils._instances import info
from ansible_collections.mage.lxd.plugins.module_utils._nat import plan as nat_plan
from ansible_collections.mage.lxd.plugins.module_utils._nat import spec as nat_spec
from ansible_collections.mage.lxd.plugins.module_utils._proxy import plan as proxy_plan
from ansible_collections.mage.lxd.plugins.module_utils._proxy import render
from ansible_collections.mage.lxd.plugins.module_utils._proxy import spec as proxy_spec
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.plugins.module_utils._server.published import Publisher
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Address, Instance, Server, Snapshot
from ansible_collections.mage.lxd.tests.unit import nat_samples

NAT = '[{"extport":8080}]'
PROXY = '[{"name":"shop.example.org"}]'


def publisher(name: str, project: str = "default", restricted: bool = False, **config: str) -> Publisher:
    return holding({_keys.PREFIX + key: value for key, value in config.items()}, name, project, restricted)


def holding(keys: dict[str, str], name: str, project: str, restricted: bool = False) -> Publisher:
    addresses = (Address("eth0", "lxdbr0", 4, f"10.0.3.{10 + sum(name.encode()) % 200}", True),)
    return Publisher(project, name, "Running", "none", keys, addresses, restricted=restricted)


GOOD = publisher("good", nat=NAT, proxy=PROXY, hostnames='["good.example.org"]')

VALUES = {
    "brackets": "[" * 200000,
    "nested lists": "[" * 500 + "]" * 500,
    "nested mappings": '{"a":' * 500 + "1" + "}" * 500,
    "long": json.dumps("x" * (_keys.LONGEST + 1)),
    "long number": "1" * 5000,
    "many wrong entries": json.dumps([0] * 50000),
    "many ports": json.dumps([{"extport": port} for port in range(1, 20000)]),
    "not a number": "[NaN, Infinity, -Infinity, 1e999]",
    "half a character": '[{"\\ud800": 1, "name": "\\ud800", "extport": "\\ud800"}, "\\ud800"]',
    "half a character in a variable": '{"a": "x\\ud800y", "b": {"c": ["\\udfff"]}, "d": {"\\ud800": 1}}',
    "half a character for us": '{"for": "shop/bad", "value": [{"a": "\\ud800"}]}',
    "line break in a key": '[{"a\\nb": 1}]',
    "written for a mapping": '{"for": {"a": 1}, "value": 1}',
    "written for a line break": '{"for": "a\\nb", "value": 1}',
    "a zone": '[{"name": "zone.example.org", "pass": "http://[fe80::1%25a]/", "extport": 9, "extaddr": "fe80::1%a"}]',
    "the name of the probe": '[{"name": "mage-probe.invalid"}, {"name": "*.invalid"}, {"name": "invalid"}]',
    "a kelvin sign": '[{"name": "\\u212aelvin.example.org"}]',
    "wrong types": '[{"name": {}, "path": [], "pass": 5, "raw": [1], "extport": true, "proto": {}, "extif": 0}]',
    "text": '"x"',
    "number": "5",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_others_publish_all_the_same(value: str) -> None:
    bad = holding(dict.fromkeys(_keys.ALL, value), "bad", "shop")

    nat = nat_plan.plan(nat_spec.Desired(), nat_samples.observed(GOOD, bad))
    assert [claim.owner.label for claim in nat.claims] == ["default/good"]

    live = proxy_plan.Live(True, render.Facts(version="1.22.1"))
    observed = proxy_plan.Observed((GOOD, bad), frozenset({"lxdbr0"}), live)
    proxy = proxy_plan.plan(proxy_spec.Desired("mageproxy", "default"), observed, False)
    assert [vhost.name for vhost in proxy.vhosts] == ["shop.example.org"]

    hosts, warnings = _hosts.entries([GOOD, bad])
    assert ("good", "good.example.org") in [entry.names for entry in hosts]

    told = (*nat.warnings, *proxy.warnings, *warnings)
    assert len(told) < 40
    assert all(len(text) < 500 and text.isprintable() for text in told), told


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_others_are_in_the_inventory_all_the_same(value: str) -> None:
    keys = dict.fromkeys((*_keys.ALL, _keys.GROUPS, _keys.VARS), value)
    bad = Instance.from_api({"name": "bad", "status": "Running", "config": keys})
    good = Instance.from_api({"name": "good", "status": "Running", "config": {_keys.INVENTORY_NAME: "good_1"}})
    place = _inventory.Place("here", ServerOptions("unix:///socket"))
    found = _inventory.hosts(Snapshot(Server("lxd", "", "", False, frozenset(), ()), (bad, good)), place)
    assert [host.name for host in found.hosts][1] == "good_1"
    for host in found.hosts:
        # As YAML, and into a file.
        json.dumps(host.variables, ensure_ascii=False).encode("utf-8")
    assert len(found.warnings) < 20
    assert all(len(text) < 500 and text.isprintable() for text in found.warnings), found.warnings


def test_a_wildcard_is_asked_for_by_a_name_that_is_nobodys() -> None:
    names = ["*.example.org", "mage-probe.example.org", "mage-probe-2.example.org"]
    vhosts = [render.Vhost(name, (render.Location("/", render.Target(), ("default/a",)),)) for name in names]
    assert render.tree(vhosts, render.Facts())[render.PROBES].splitlines() == [
        "mage-probe-3.example.org *.example.org",
        "mage-probe.example.org mage-probe.example.org",
        "mage-probe-2.example.org mage-probe-2.example.org",
    ]


def test_a_restricted_project_has_no_names_on_the_host_unless_it_is_allowed() -> None:
    shop = publisher("web", "shop", restricted=True, hostnames='["deb.example.org"]')
    hosts, warnings = _hosts.entries([GOOD, shop])
    assert [entry.names for entry in hosts] == [("good", "good.example.org")]
    assert warnings == ("shop/web: project shop is restricted and not allowed: it has no names",)
    hosts, warnings = _hosts.entries([GOOD, shop], {"shop"})
    assert [entry.names for entry in hosts] == [("good", "good.example.org"), ("web", "deb.example.org")]
    assert warnings == ()


def test_the_machines_own_names_stay_its_own() -> None:
    asking = publisher("localhost", hostnames='["ip6-loopback", "web.example.org"]')
    hosts, warnings = _hosts.entries([asking])
    assert [entry.names for entry in hosts] == [("web.example.org",)]
    assert len(warnings) == 2


def test_names_are_those_of_the_inventory_of_all_projects() -> None:
    instances = tuple(
        Instance.from_api({"name": "web", "status": "Running", "project": project}) for project in ("default", "shop")
    )
    seen = info.Seen(Snapshot(Server("lxd", "", "", False, frozenset(), ()), instances), "", True, (), ())
    found = info.result(info.Query(None, None, ()), seen, info.plan(info.Query(None, None, ()), seen, False), None)
    assert [one["inventory_name"] for one in found["instances"]] == ["web", "web.shop"]
