# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory reads of servers, and what it makes of their answers: no request too many, no host too few."""

from __future__ import annotations

import json
import typing as t

import jinja2
import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory import Constructable
from ansible.template import Templar

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._inventory import Listing
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Response, checked
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions
from ansible_collections.mage.lxd.plugins.plugin_utils import _hosts, _inventory_file, _inventory_read

KNOWN = {"servers", "filters", "hostnames", "need", "prefer", "compose", *_inventory_file.OF_A_SERVER}
JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
NIC = {"eth0": {"type": "nic", "network": "br"}}


class Told:
    """A server that answers what it is told to: metadata by path, a status for an error. ``asked`` has the queries."""

    def __init__(self, answers: dict[str, t.Any], endpoint: str = "") -> None:
        self.answers = answers
        self.endpoint = endpoint
        self.requests: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.closed = False

    def request(self, method: str, path: str, query: t.Mapping[str, str] | None = None, **_more: t.Any) -> Response:
        self.requests.append((method, path))
        words = "&".join(f"{key}={value}" for key, value in (query or {}).items())
        self.asked.append(f"{path}?{words}")
        answer = self.answers.get(self.asked[-1], self.answers.get(path, 404))
        if isinstance(answer, Exception):
            raise answer
        status, metadata = (answer, None) if isinstance(answer, int) else (200, answer)
        body = json.dumps({"metadata": metadata, "error": "no"}).encode()
        return checked(Response(status, {}, body), f"{method} {path}")

    def close(self) -> None:
        self.closed = True


def raw(name: str, status: str = "Running", project: str = "default", **more: t.Any) -> dict[str, t.Any]:
    config = {"volatile.eth0.hwaddr": f"00:{name}", **more.pop("config", {})}
    return {
        "name": name, "status": status, "project": project, "config": config, "expanded_devices": NIC, **more
    }  # fmt: skip


def evaluate(expression: str, variables: t.Mapping[str, t.Any]) -> t.Any:
    try:
        return JINJA.compile_expression(expression, undefined_to_none=False)(**variables) or None
    except jinja2.UndefinedError as e:
        raise AnsibleError(str(e)) from e


class Composing(Constructable):
    """What the plugin evaluates with: this ansible-core."""

    def __init__(self) -> None:
        self.templar = Templar(loader=DataLoader())


def build(
    text: str, *servers: Told, strict: bool = False, evaluate: _hosts.Evaluate = evaluate
) -> tuple[Listing, _inventory_read.Reader]:
    by_endpoint = {f"unix:///{index}": one for index, one in enumerate(servers)}
    content = yaml.safe_load(text) or {}
    entries = content.get("servers", [content])
    for (endpoint, told), entry in zip(by_endpoint.items(), entries):
        told.endpoint = entry["endpoint"] = endpoint

    def connect(options: ServerOptions) -> t.Any:
        return by_endpoint[options.endpoint]

    settings = _inventory_file.parse(content, KNOWN, {})
    with _inventory_read.Reader(settings, connect) as reader:
        return _hosts.Builder(settings, evaluate, strict).build(reader), reader


def names(listing: Listing) -> list[str]:
    return [host.name for host in listing.hosts]


LEASES = [{"hwaddr": "00:web-1", "address": "10.64.0.2"}, {"hwaddr": "00:web-2", "address": "10.64.0.3"}]
LIST = [raw("web-1"), raw("web-2"), raw("db-1", "Stopped"), raw("db-2", "Frozen", profiles=["big"])]


def test_one_request_for_the_list_and_one_for_the_leases_of_a_network() -> None:
    told = Told({"/1.0/instances": LIST, "/1.0/networks/br/leases": LEASES})
    listing, reader = build("{}", told)
    assert told.asked == [
        "/1.0/instances?recursion=1&all-projects=true",
        "/1.0/networks/br/leases?project=default",
    ]
    assert reader.requests == told.requests
    assert names(listing) == ["db-1", "db-2", "web-1", "web-2"]
    assert [host.variables["lxd_ipv4"] for host in listing.hosts] == [[], [], ["10.64.0.2"], ["10.64.0.3"]]
    assert told.closed


def test_an_instance_on_a_network_that_leases_nothing_is_asked_itself() -> None:
    """Of a managed network of macvlan, servers say so with an error."""
    state = {"network": {"eth0": {"hwaddr": "00:web-1", "addresses": [{"address": "10.64.0.9", "scope": "global"}]}}}
    never = _errors.ServerError(500, "Not implemented", "GET /1.0/networks/br/leases")
    answers = {"/1.0/instances": LIST[:1], "/1.0/networks/br/leases": never, "/1.0/instances/web-1/state": state}
    listing, _reader = build("{}", Told(answers))
    assert [host.variables["lxd_ipv4"] for host in listing.hosts] == [["10.64.0.9"]]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("filters: {status: stopped}", ["db-1"]),
        ("filters: {name: db-1}", ["db-1"]),
        ("filters: {expression: lxd_status == 'Stopped'}", ["db-1"]),
        ("filters: {expression: [lxd_status != 'Running', inventory_hostname == 'db-1']}", ["db-1"]),
        ("need: []", ["db-1", "db-2", "web-1", "web-2"]),
        # A server that is not asked about what is missing.
        ("filters: {project: elsewhere}", []),
    ],
)
def test_filters_come_before_leases(text: str, left: list[str]) -> None:
    told = Told({"/1.0/instances": LIST})
    listing, _reader = build(text, told)
    assert len(told.requests) == 1
    assert names(listing) == left


def test_an_expression_about_addresses_is_evaluated_when_they_are_known() -> None:
    told = Told({"/1.0/instances": LIST, "/1.0/networks/br/leases": LEASES})
    listing, _reader = build("filters: {expression: [lxd_ipv4 | last == '10.64.0.3', lxd_status == 'Running']}", told)
    assert names(listing) == ["web-2"]


def test_one_request_for_each_project_that_is_named() -> None:
    told = Told(
        {
            "/1.0/instances?recursion=1&project=a": [raw("x", "Stopped", "a")],
            "/1.0/instances": [],
            "/1.0/projects/b": {},
        }
    )
    listing, _reader = build("projects: [a, b]", told)
    assert told.asked == [
        "/1.0/instances?recursion=1&project=a",
        "/1.0/instances?recursion=1&project=b",
        "/1.0/projects/b?",
    ]
    assert names(listing) == ["x"]
    with pytest.raises(_errors.InvalidInput, match=r'^projects: "nope": there is none on unix:///0$'):
        build("projects: [nope]", Told({"/1.0/instances": []}))


def test_states_and_snapshots_are_one_request_without_filters_and_few_with_them() -> None:
    full = [{**one, "state": {"processes": 7}, "snapshots": [{"name": "s0"}]} for one in LIST]
    whole = Told({"/1.0/instances": full, "/1.0/networks/br/leases": LEASES})
    listing, _reader = build("need: [addresses, state, snapshots]", whole)
    assert whole.asked[0] == "/1.0/instances?recursion=2&all-projects=true"
    assert len(whole.requests) == 2
    assert {host.variables["lxd_state"]["processes"] for host in listing.hosts} == {7}

    # web-2 was deleted meanwhile.
    few = Told({"/1.0/instances": LIST, "/1.0/instances/web-1": full[0]})
    listing, _reader = build("{need: [snapshots], filters: {name: web-*}}", few)
    assert sorted(few.asked[1:]) == [
        "/1.0/instances/web-1?recursion=1&project=default",
        "/1.0/instances/web-2?recursion=1&project=default",
    ]
    assert [host.variables.get("lxd_snapshots", "none")[0] for host in listing.hosts] == [
        {"name": "s0", "created_at": None, "expires_at": None, "stateful": None, "size": None},
        "n",
    ]
    assert "lxd_state" not in listing.hosts[0].variables


def test_projects_are_only_asked_about_when_an_instance_names_something() -> None:
    one = raw("a", "Stopped", "shop", config={"user.mage.groups": "web"})
    told = Told({"/1.0/instances": [one], "/1.0/projects": [{"name": "shop", "config": {"restricted": "true"}}]})
    listing, _reader = build("{}", told)
    assert told.asked[1:] == ["/1.0/projects?recursion=1"]
    assert "web" not in listing.hosts[0].groups
    assert "restricted" in listing.warnings[0]


SERVERS = "servers: [{name: a}, {name: b, on_unreachable: warn}, {name: c}]"


def test_one_unreachable_server_does_not_lose_the_rest() -> None:
    down = Told({"/1.0/instances": _errors.ServerUnreachable("unix:///1", "no answer")})
    listing, reader = build(
        SERVERS, Told({"/1.0/instances": [raw("x", "Stopped")]}), down, Told({"/1.0/instances": []})
    )
    assert names(listing) == ["x"]
    assert reader.warnings == [
        "servers[1].endpoint: Cannot reach the server at unix:///1: no answer: its instances are missing"
    ]


MISSING = [
    ({"/1.0/instances": 403}, "projects: GET /1.0/instances: no (403): the certificate may not read all projects"),
    ({"/1.0/instances": {"a": "b"}}, "endpoint: GET /1.0/instances: what answered is no list of instances"),
    ({"/1.0/instances": [{"name": ""}]}, "endpoint: GET /1.0/instances: what answered is no list of instances"),
]


@pytest.mark.parametrize(("answers", "why"), MISSING)
def test_a_server_that_says_what_is_of_no_use_does_not_lose_the_rest(answers: dict[str, t.Any], why: str) -> None:
    fine = Told({"/1.0/instances": [raw("x", "Stopped")]}), Told({"/1.0/instances": []})
    listing, reader = build(SERVERS, fine[0], Told(answers), fine[1])
    assert names(listing) == ["x"]
    assert len(reader.warnings) == 1
    assert reader.warnings[0].startswith(f"servers[1].{why}")
    assert reader.warnings[0].endswith(": its instances are missing")
    with pytest.raises(_errors.InvalidInput, match=r"^servers\[0\]\."):
        build(SERVERS, Told(answers), Told({"/1.0/instances": []}), fine[1])


def test_a_project_that_is_not_there_loses_its_own_instances_only() -> None:
    told = Told({"/1.0/instances?recursion=1&project=a": [raw("x", "Stopped", "a")], "/1.0/instances": []})
    listing, reader = build("{projects: [nope, a], on_unreachable: warn}", told)
    assert names(listing) == ["x"]
    assert reader.warnings == ['projects: "nope": there is none on unix:///0: its instances are missing']


def test_where_no_server_is_there_that_is_a_warning_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LXD_CONF", "/none")
    content = {"servers": [{"name": one, "endpoint": f"lxc:{one}", "on_unreachable": "warn"} for one in ("a", "b")]}
    with _inventory_read.Reader(_inventory_file.parse(content, KNOWN, {})) as reader:
        assert _hosts.Builder(reader._settings, evaluate, False).build(reader).hosts == ()
        assert [warning.split(":")[0] for warning in reader.warnings] == ["servers[0].endpoint", "servers[1].endpoint"]


def test_a_server_that_gets_lost_after_its_list_is_missing_too() -> None:
    lost = Told(
        {"/1.0/instances": [raw("y")], "/1.0/networks/br/leases": _errors.ServerUnreachable("unix:///1", "gone")}
    )
    listing, reader = build(
        SERVERS, Told({"/1.0/instances": [raw("x", "Stopped")]}), lost, Told({"/1.0/instances": []})
    )
    assert names(listing) == ["x"]
    assert len(reader.warnings) == 1


def test_all_servers_that_must_be_reached_and_cannot_are_told() -> None:
    down = [Told({"/1.0/instances": _errors.ServerUnreachable("there", "no answer")}) for _each in range(3)]
    with pytest.raises(_errors.InvalidInput) as caught:
        build(SERVERS, *down)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "servers[0].endpoint",
        "servers[2].endpoint",
    ]
    assert all(one.closed for one in down)


def test_a_certificate_that_may_not_read_all_projects_is_told_what_to_do() -> None:
    with pytest.raises(_errors.InvalidInput, match=r"^projects: .*name those that it may$"):
        build("{}", Told({"/1.0/instances": 403}))


def test_names_do_not_depend_on_filters() -> None:
    first = Told({"/1.0/instances": [raw("web", "Stopped"), raw("x", "Stopped")]})
    second = Told({"/1.0/instances": [raw("web", "Frozen")]})
    listing, _reader = build("{servers: [{name: a}, {name: b}], filters: {status: frozen}}", first, second)
    assert names(listing) == ["web.b"]


def test_hostnames_by_template() -> None:
    told = Told({"/1.0/instances": LIST})
    text = "{need: [], hostnames: [\"lxd_config['user.name']\", \"'bad name'\", lxd_server ~ '_' ~ lxd_instance]}"
    listing, _reader = build(text, told)
    assert names(listing) == ["local_db-1", "local_db-2", "local_web-1", "local_web-2"]
    with pytest.raises(_errors.InvalidInput, match=r"^hostnames\[0\]: db-1: "):
        build(text, Told({"/1.0/instances": LIST}), strict=True)


def test_a_name_that_several_hosts_would_get_is_given_to_none() -> None:
    told = Told({"/1.0/instances": LIST})
    listing, _reader = build("{need: [], hostnames: [\"'web-1' if lxd_status == 'Frozen' else lxd_status\"]}", told)
    # db-2 is called web-1 by the file, so web-1 cannot be.
    assert names(listing) == ["Stopped", "web-1", "web-1.2", "web-2"]
    assert len(listing.warnings) == 2


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        ("lxd_profiles | length", ["db-2"]),
        ("lxd_profiles | length - 1", ["db-1", "web-1", "web-2"]),
        ("0", []),
        ("lxd_profiles", ["db-2"]),
        ("lxd_description", []),
        ("none", []),
        ("lxd_status == 'Stopped' or lxd_profiles | length", ["db-1", "db-2"]),
        ("lxd_profiles | first", ["db-2"]),
        ("lxd_nope", []),
    ],
)
def test_an_expression_holds_as_it_does_in_a_condition(expression: str, left: list[str]) -> None:
    text = f"{{need: [], filters: {{expression: {json.dumps(expression)}}}}}"
    listing, _reader = build(text, Told({"/1.0/instances": LIST}), evaluate=Composing()._compose)
    assert names(listing) == left


def test_an_expression_that_fails_does_not_hold_or_is_an_error() -> None:
    text = "{need: [], filters: {expression: lxd_nope == 1}}"
    listing, _reader = build(text, Told({"/1.0/instances": LIST}))
    assert listing.hosts == ()
    assert listing.warnings == ("filters.expression: it failed for every one of 4 hosts: 'lxd_nope' is undefined",)
    some = "{need: [], filters: {expression: lxd_profiles | first == 'big'}}"
    listing, _reader = build(some, Told({"/1.0/instances": LIST}))
    assert (names(listing), listing.warnings) == (["db-2"], ())
    with pytest.raises(_errors.InvalidInput, match=r"^filters\.expression: db-1: "):
        build(text, Told({"/1.0/instances": LIST}), strict=True)


BROKEN: list[dict[str, t.Any]] = [
    {"name": "bare"},
    {"name": "bare", "status": "Error", "config": None, "devices": None, "profiles": None, "location": None},
    raw("bare", "Running", expanded_devices={"eth0": {"type": "nic"}, "eth1": {}}),
    raw("bare", "Running", config={"user.mage.vars": "[", "user.mage.groups": "{", "user.mage.nat": "5"}),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_one_broken_instance_is_a_host_beside_the_others(broken: dict[str, t.Any]) -> None:
    told = Told({"/1.0/instances": [broken, *LIST], "/1.0/networks/br/leases": LEASES, "/1.0/projects": []})
    listing, _reader = build("prefer: {family: ipv4}", told)
    assert names(listing) == ["bare", "db-1", "db-2", "web-1", "web-2"]
    assert listing.hosts[0].variables["ansible_connection"] == "mage.lxd.lxd"


def test_hosts_are_put_in_whole_and_merged_with_what_is_known_already() -> None:
    inventory = InventoryData()
    inventory.add_host("web-1")
    inventory.set_variable("web-1", "mine", 1)
    inventory.set_variable("web-1", "lxd_status", "Old")
    told = Told({"/1.0/instances": LIST})
    listing, _reader = build("need: []", told)
    hosts = [{"name": one.name, "groups": one.groups, "variables": one.variables} for one in listing.hosts]
    assert _hosts.add(inventory, hosts) == names(listing)
    inventory.reconcile_inventory()
    assert inventory.get_host("web-1").vars["mine"] == 1
    assert inventory.get_host("web-1").vars["lxd_status"] == "Running"
    assert [host.name for host in inventory.groups["status_running"].hosts] == ["web-1", "web-2"]
    assert [host.name for host in inventory.groups["profile_big"].hosts] == ["db-2"]
    assert len(inventory.groups["all"].get_hosts()) == 4


UNMANAGED = {"eth0": {"type": "nic", "nictype": "bridged", "parent": "br9"}}


@pytest.mark.parametrize(
    ("text", "path", "what"),
    [
        ("{}", "/1.0/instances/bare/state", "default/bare: its addresses are missing: GET /1.0/instances/bare/state"),
        ("{}", "/1.0/networks/br/leases", "network br: its leases are missing: GET /1.0/networks/br/leases"),
        (
            "{need: [snapshots], filters: {name: '*'}}",
            "/1.0/instances/bare",
            "default/bare: its state and snapshots are missing: GET /1.0/instances/bare",
        ),
    ],
)
@pytest.mark.parametrize(
    ("failure", "why"), [(500, "no (500)"), (_errors.DeadlinePassed("no answer after 60 s"), "no answer after 60 s")]
)
def test_what_the_server_cannot_say_of_one_thing_is_told_and_loses_nothing_else(
    text: str, path: str, what: str, failure: t.Any, why: str
) -> None:
    answers: dict[str, t.Any] = {
        "/1.0/instances": [raw("bare", expanded_devices=UNMANAGED), *LIST],
        "/1.0/networks/br/leases": LEASES,
        **{f"/1.0/instances/{one['name']}": one for one in LIST},
        path: failure,
    }
    listing, reader = build(text, Told(answers))
    assert names(listing) == ["bare", "db-1", "db-2", "web-1", "web-2"]
    said = what if why == "no (500)" else what.rpartition(": GET ")[0]
    assert reader.warnings == [f"endpoint: {said}: {why}"]


def test_a_second_device_outside_of_the_servers_networks_is_read_too() -> None:
    both = {**NIC, "eth1": {"type": "nic", "nictype": "macvlan", "parent": "lan", "name": "eth1"}}
    addresses = {"eth0": "10.64.0.2", "eth1": "10.65.0.2"}
    state = {
        "network": {
            name: {"hwaddr": f"00:{name}", "addresses": [{"address": one, "scope": "global", "family": "inet"}]}
            for name, one in addresses.items()
        }
    }
    answers = {
        "/1.0/instances": [raw("web-1", config={"volatile.eth1.hwaddr": "00:eth1"}, expanded_devices=both)],
        "/1.0/networks/br/leases": LEASES,
        "/1.0/instances/web-1/state": state,
    }
    listing, _reader = build("prefer: {nic: eth1}", Told(answers))
    assert listing.hosts[0].variables["ansible_host"] == "10.65.0.2"


def test_a_network_device_with_several_addresses() -> None:
    # What a device of the type routed or ipvlan may have.
    device = {"type": "nic", "nictype": "routed", "parent": "br9", "ipv4.address": "10.64.0.8, 10.64.0.9/24"}
    told = Told({"/1.0/instances": [raw("many", expanded_devices={"eth0": device}), *LIST]})
    listing, _reader = build("prefer: {network: 10.64.0.9/32}", told)
    assert listing.hosts[2].variables["lxd_ipv4"] == ["10.64.0.8", "10.64.0.9"]
    assert listing.hosts[2].variables["ansible_host"] == "10.64.0.9"
