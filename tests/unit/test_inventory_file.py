# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file for the inventory plugin may say, and how its mistakes are told."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.mage.lxd.plugins.inventory import lxd
from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import options
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Instance
from ansible_collections.mage.lxd.plugins.plugin_utils import _inventory_file, _positions

OPTIONS = yaml.safe_load(lxd.DOCUMENTATION)["options"]
# Those of the fragments.
KNOWN = {
    *OPTIONS,
    *("compose", "groups", "keyed_groups", "strict", "use_extra_vars", "leading_separator"),
    *("cache", "cache_plugin", "cache_connection", "cache_prefix", "cache_timeout"),
}
LOCAL = {"endpoint": "unix:///socket"}


def parse(text: str, **environment: str) -> _inventory_file.Settings:
    return _inventory_file.parse(yaml.safe_load(text), KNOWN, environment or LOCAL, lambda path: f"/folder/{path}")


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(_errors.InvalidInput) as caught:
        parse(text)
    return caught.value.problems


def test_every_option_of_a_server_is_documented_twice_and_has_its_variable() -> None:
    suboptions = OPTIONS["servers"]["suboptions"]
    assert set(suboptions) == set(_inventory_file.OF_A_SERVER)
    assert set(OPTIONS) >= set(suboptions)
    variables = {name: [one["name"] for one in OPTIONS[name].get("env", ())] for name in suboptions}
    assert {name: found[0] for name, found in variables.items() if found} == lxd.ENVIRONMENT
    for name in suboptions:
        kept = {key: value for key, value in OPTIONS[name].items() if key in ("type", "elements", "choices")}
        assert {key: value for key, value in suboptions[name].items() if key != "description"} == kept, name


def test_the_examples_are_files_that_are_right() -> None:
    examples = list(yaml.safe_load_all(lxd.EXAMPLES))
    assert len(examples) == 5
    for example in examples:
        assert _inventory_file.parse(example, KNOWN, LOCAL, lambda path: __file__).servers


def test_one_server_is_the_short_form_of_a_list_of_one() -> None:
    short = parse("{endpoint: 'unix:///a', projects: [p, q], on_unreachable: warn, via: [outer], timeout: 30}")
    long = parse(
        "servers: [{endpoint: 'unix:///a', projects: [p, q], on_unreachable: warn, via: outer, timeout: '30'}]"
    )
    assert [(one.name, one.options, one.projects, one.fails) for one in short.servers] == [
        (one.name, one.options, one.projects, one.fails) for one in long.servers
    ]
    assert short.servers[0].options == options.ServerOptions("unix:///a", via=("outer",), timeout=30)
    assert (short.servers[0].projects, short.servers[0].fails) == (("p", "q"), False)


def test_what_stands_beside_servers_holds_for_each_that_does_not_say_otherwise() -> None:
    text = "{timeout: 20, projects: [a], servers: [{endpoint: /a}, {endpoint: /b, name: b, project: c, timeout: 30}]}"
    found = parse(text)
    assert [(one.options.timeout, one.projects) for one in found.servers] == [(20, ("a",)), (30, ("c",))]


def test_the_environment_counts_for_less_than_the_file() -> None:
    assert parse("{}", endpoint="unix:///e", project="p").servers[0].projects == ("p",)
    assert parse("projects: [q]", endpoint="unix:///e", project="p").servers[0].projects == ("q",)
    assert parse("endpoint: unix:///f", endpoint="unix:///e").servers[0].options.endpoint == "unix:///f"


@pytest.mark.parametrize(
    ("endpoint", "via", "name"),
    [
        ("unix:///var/lib/lxd/unix.socket", (), "lxd"),
        ("unix:///var/snap/lxd/common/lxd/unix.socket", (), "lxd"),
        ("/var/lib/incus/unix.socket", (), "incus"),
        ("unix:///elsewhere", (), "local"),
        ("https://rack-1.example.org:8443", (), "rack-1.example.org"),
        ("https://[2001:db8::1]:8443", (), "2001-db8--1"),
        ("ssh://admin@rack-1:2222/socket", (), "rack-1"),
        ("lxc:rack", (), "rack"),
        ("unix:///var/lib/lxd/unix.socket", ("outer", "middle"), "lxd.outer.middle"),
    ],
)
def test_a_server_without_a_name_has_that_of_its_place(endpoint: str, via: tuple[str, ...], name: str) -> None:
    assert _inventory_file.default_name(endpoint, via) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("endpont: x", ["endpont: unknown key (did you mean endpoint?)"]),
        ("servers: 5", ["servers: 5: must be a list"]),
        ("servers: []", ["servers: must name at least one server"]),
        ("servers: [{nam: a}]", ["servers[0].nam: unknown key (did you mean name?)"]),
        ("{endpoint: 'unix:///a', servers: [{name: a}]}", ["endpoint: cannot stand beside servers: say it for"]),
        ("servers: [{endpoint: 'ftp://x'}, {timeout: 0}]", ['servers[0].endpoint: "ftp://x"', "servers[1].timeout: 0"]),
        ("servers: [{}, {}]", ['servers[1].name: "lxd": is the name of servers[0] already: say another']),
        ("name: a b", ['name: "a b": must be letters']),
        ("{project: a, projects: [b]}", ["project: cannot stand beside projects"]),
        ("projects: [5]", ["projects[0]: 5: must be text"]),
        ("on_unreachable: ignore", ['on_unreachable: "ignore": must be one of fail, warn']),
        ("insecure_skip_verify: maybe", ['insecure_skip_verify: "maybe": must be true or false']),
        ("filters: [a]", ['filters: ["a"]: must be a mapping']),
        ("filters: {stat: a}", ["filters.stat: unknown key (did you mean status?)"]),
        ("filters: {status: runing}", ['filters.status: "runing": must be one of running']),
        ("filters: {type: vm}", ['filters.type: "vm": must be one of container, virtual-machine']),
        ("filters: {name: ['~a(']}", ['filters.name: "~a(": is no regular expression']),
        ("filters: {expression: a ==}", ['filters.expression: "a ==": is no Jinja2 expression']),
        ("hostnames: ['a', 'b |']", ['hostnames[1]: "b |": is no Jinja2 expression']),
        ("compose: {a: '1 +'}", ['compose.a: "1 +": is no Jinja2 expression']),
        ("groups: {a: ')'}", ['groups.a: ")": is no Jinja2 expression']),
        ("keyed_groups: [{prefix: a}]", ['keyed_groups[0]: {"prefix": "a"}: must be a mapping with a key']),
        ("prefer: {network: 192.0.2.1/24}", ['prefer.network: "192.0.2.1/24": must be a network', "host bits set"]),
        ("prefer: {family: 5, nic: 1}", ["prefer.family: 5: must be ipv4 or ipv6", "prefer.nic: 1: must be the name"]),
        ("keyed_groups: [{key: a, prefx: b}]", ["keyed_groups[0].prefx: unknown key (did you mean prefix?)"]),
        ("keyed_groups: [{key: a, prefix: [b]}]", ['keyed_groups[0].prefix: ["b"]: must be text']),
        ("keyed_groups: [{key: a, separator: {}}]", ["keyed_groups[0].separator: {}: must be text"]),
        (
            "keyed_groups: [{key: a, trailing_separator: maybe}]",
            ['keyed_groups[0].trailing_separator: "maybe": must be true or false'],
        ),
        (
            "keyed_groups: [{key: a, trailing_separator: false, default_value: b}]",
            ["keyed_groups[0].trailing_separator: cannot stand beside default_value"],
        ),
        ("strict: maybe", ['strict: "maybe": must be true or false']),
        ("use_extra_vars: 5", ["use_extra_vars: 5: must be true or false"]),
        ("leading_separator: []", ["leading_separator: []: must be true or false"]),
        ("{cache: often, cache_timeout: x}", ['cache: "often": must be true', 'cache_timeout: "x": must be a number']),
        ("cache_timeout: -1", ["cache_timeout: -1: must be a number of seconds, such as 3600"]),
        ("cache_plugin: [jsonfile]", ['cache_plugin: ["jsonfile"]: must be text']),
        ("need: [states]", ['need[0]: "states": must be one of addresses, state, snapshots']),
        ("connection: local", ['connection: "local": must be one of mage.lxd.lxd, ssh']),
    ],
)
def test_a_mistake_is_told_with_its_key(text: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LXD_SOCKET", "/var/lib/lxd/unix.socket")
    told = problems(text)
    assert len(told) <= len(expected)
    for words in expected:
        assert any(words in problem for problem in told), told


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = "plugin: mage.lxd.lxd\nservers:\n  - name: a\n    endpoint: ftp://x\nfilters:\n  name:\n    - ~[\nbad: 1\n"
    path = tmp_path / "lxd.yml"
    told = _positions.placed(str(path), text, problems(text)).split(f"; {path}")
    lines = {one.removeprefix(str(path)).split(": ")[1]: one.removeprefix(str(path)).split(":")[1] for one in told}
    assert lines == {"servers[0].endpoint": "4", "filters.name": "6", "bad": "8"}


@pytest.mark.parametrize(
    ("path", "line"),
    [("a", 1), ("a.b", 2), ("a.b[1]", 4), ("a.b[1].c", 5), ("a.b[9]", 2), ("a.x.y", 1), ("z", None), ("", None)],
)
def test_the_line_is_that_of_the_nearest_key(path: str, line: int | None) -> None:
    assert _positions.line("a:\n  b:\n    - 1\n    - d: 1\n      c: !unsafe 2\n", path) == line


def test_what_is_right_in_keyed_groups_and_for_a_cache_is_taken() -> None:
    group = "{key: a, prefix: b, separator: '', parent_group: '{{ c }}', default_value: 5}"
    cache = "cache: yes, cache_plugin: jsonfile, cache_connection: /c, cache_timeout: '60', cache_prefix: ''"
    text = f"{{strict: 'no', keyed_groups: [{group}, {{key: a, trailing_separator: false}}], {cache}}}"
    assert parse(text).servers


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            "plugin: x\ncompose: {a: b\n",
            (3, "expected ',' or '}', but got '<stream end>', while parsing a flow mapping of line 2"),
        ),
        ("a: b\n  c: d\n", (2, "mapping values are not allowed here")),
        ("a: *b\n", (1, "found undefined alias 'b'")),
        ("a: \0\n", None),
        ("a: b\n", None),
    ],
)
def test_a_mistake_of_yaml_has_its_line(text: str, mistake: t.Any) -> None:
    assert _positions.mistake(text) == mistake


ABSENT = [
    ("endpoint: 'lxc:nope'", 'endpoint: "lxc:nope": there is no such remote in '),
    ("{endpoint: 'https://x', client_cert: /none, client_key: /none}", 'client_cert: "/none": there is no such file'),
    ("{endpoint: 'https://x', server_cert: /none}", 'server_cert: "/none": there is no such file'),
    ("endpoint: 'https://x'", "client_cert, client_key: a server at https:// needs both"),
    ("{}", "endpoint: no LXD or Incus on this machine"),
]


@pytest.mark.parametrize(("text", "problem"), ABSENT)
def test_a_server_that_cannot_be_looked_for_loses_the_others_only_where_it_has_to_be_there(
    text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LXD_SOCKET", "INCUS_SOCKET", "LXD_DIR", "INCUS_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LXD_CONF", str(tmp_path))
    monkeypatch.setenv("INCUS_CONF", str(tmp_path))
    monkeypatch.setattr(options, "SOCKETS", (("lxd", str(tmp_path / "socket")),))
    raw = {"servers": [{"name": "a", "endpoint": "/a"}, {"name": "b", **yaml.safe_load(text)}]}

    def parsed(**more: str) -> _inventory_file.Settings:
        changed = {"servers": [raw["servers"][0], {**raw["servers"][1], **more}]}
        return _inventory_file.parse(changed, KNOWN, {})

    with pytest.raises(_errors.InvalidInput) as fatal:
        parsed()
    assert all(one.startswith("servers[1].") for one in fatal.value.problems)
    found = parsed(on_unreachable="warn")
    assert [one.name for one in found.servers] == ["a"]
    assert found.absent[0].startswith(f"servers[1].{problem}")
    assert all(one.endswith(": its instances are missing") for one in found.absent)
    # What was written has to be right all the same, and is told together.
    with pytest.raises(_errors.InvalidInput) as wrong:
        parsed(on_unreachable="warn", timeout="soon")
    assert [one.split(":")[0] for one in wrong.value.problems][-1] == "servers[1].timeout"


def test_a_file_that_is_no_yaml_has_no_lines() -> None:
    assert _positions.line("a: [", "a") is None
    assert _positions.placed("f", "$ANSIBLE_VAULT;1.1", ["a: wrong"]) == "f: a: wrong"


def made(name: str = "web-1", status: str = "Running", **raw: t.Any) -> Instance:
    return Instance.from_api({"name": name, "status": status, **raw})


@pytest.mark.parametrize(
    ("filters", "one", "matches"),
    [
        ("{}", made(), True),
        ("{status: running}", made(), True),
        ("{status: [Stopped, frozen]}", made(), False),
        ("{status: error}", Instance.from_api({"name": "broken"}), True),
        ("{type: virtual-machine}", made(type="virtual-machine"), True),
        ("{type: virtual-machine}", made(), False),
        ("{name: web-*}", made(), True),
        ("{name: web}", made(), False),
        ("{name: ~web}", made(), True),
        ("{name: ~eb}", made(), False),
        ("{name: [db-*, '~web-[0-9]$']}", made(), True),
        ("{profile: big*}", made(profiles=["default", "bigger"]), True),
        ("{profile: big*}", made(), False),
        ("{project: [shop]}", made(project="shop"), True),
        ("{project: [shop], name: web-*}", made("db-1", project="shop"), False),
    ],
)
def test_filters(filters: str, one: Instance, matches: bool) -> None:
    assert parse(f"filters: {filters}").filters.match(one) is matches


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("{}", {"addresses"}),
        ("need: []", set()),
        ("need: state", {"state"}),
        ("{need: [], prefer: {family: ipv4}}", {"addresses"}),
        ("{need: [], connection: ssh}", {"addresses"}),
        ("{need: [], compose: {a: 'lxd_ipv4[0]'}}", {"addresses"}),
        ("{need: [], groups: {a: lxd_state.processes > 9}}", {"state"}),
        ("{need: [], keyed_groups: [{key: lxd_snapshots | length}]}", {"snapshots"}),
        ("{need: [], hostnames: [lxd_instance]}", set()),
        ("{need: [], filters: {expression: lxd_nics}}", {"addresses"}),
    ],
)
def test_what_expressions_speak_of_is_read(text: str, needs: set[str]) -> None:
    assert parse(text).needs == needs


def test_files_begin_in_the_folder_of_the_inventory(tmp_path: Path) -> None:
    for name in ("crt", "key"):
        (tmp_path / name).touch()
    raw = {"endpoint": "https://x", "client_cert": "crt", "client_key": "key"}
    found = _inventory_file.parse(raw, KNOWN, {}, lambda path: str(tmp_path / path)).servers[0].options
    assert (found.client_cert, found.client_key) == (str(tmp_path / "crt"), str(tmp_path / "key"))
