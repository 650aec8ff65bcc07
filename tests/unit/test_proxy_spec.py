# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users may say of routes."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput
from ansible_collections.mage.lxd.plugins.module_utils._proxy import spec
from ansible_collections.mage.lxd.plugins.module_utils._values import Problems

HARMFUL = "\0\n\r\t ;{}\"'\\$#"


def parsed(*entries: t.Any) -> tuple[tuple[spec.Route, ...], tuple[str, ...]]:
    problems = Problems()
    return spec.parse_entries(list(entries), "instances[0].proxy", problems), problems.texts


@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        ({"name": "Shop.Example.ORG"}, {"name": "shop.example.org", "path": "/", "port": 80}),
        ({"name": "a", "port": "8080"}, {"name": "a", "path": "/", "port": 8080}),
        ({"name": "*.example.org", "path": "/a"}, {"name": "*.example.org", "path": "/a", "port": 80}),
        ({"name": "ubu1.example.org", "path": "/postgres/", "pass": ""}, {"path": "/postgres/", "port": 80}),
        ({"name": "a", "pass": None}, {"port": 80}),
        ({"name": "a", "pass": "http://web-2"}, {"pass": "http://web-2:80"}),
        ({"name": "a", "pass": "https://APP.example.org/x/"}, {"pass": "https://app.example.org:443/x/"}),
        ({"name": "a", "pass": "http://[2001:db8::1]:81/"}, {"pass": "http://[2001:db8::1]:81/"}),
        (
            {"name": "a", "raw": "proxy_read_timeout 1h;\n  add_header X 'a b';\n"},
            {"raw": "proxy_read_timeout 1h;\nadd_header X 'a b';"},
        ),
        ({"name": "a", "raw": "  \n"}, {"name": "a", "path": "/", "port": 80}),
    ],
)
def test_a_route_is_kept_in_one_form(entry: dict[str, t.Any], kept: dict[str, t.Any]) -> None:
    routes, problems = parsed(entry)
    assert problems == ()
    value = routes[0].to_json()
    assert {key: value.get(key) for key in kept} == kept
    assert ("port" in value) == ("pass" not in value)
    again, problems = parsed(value)
    assert (again, problems) == (routes, ())


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("shop.example.org", 'proxy[0]: "shop.example.org": must be a mapping with the keys'),
        ({}, "proxy[0].name: missing"),
        ({"nme": "a"}, "proxy[0].nme: unknown key (did you mean name?)"),
        ({"name": "a b"}, 'proxy[0].name: "a b": must be a hostname'),
        ({"name": "a", "path": "api"}, 'proxy[0].path: "api": must be a path that starts with /'),
        ({"name": "a", "path": "/a//b"}, 'proxy[0].path: "/a//b": must be a path without //'),
        ({"name": "a", "path": "/a/../b"}, "proxy[0].path"),
        ({"name": "a", "port": 0}, "proxy[0].port: 0: must be 1 to 65535"),
        ({"name": "a", "port": 65536}, "proxy[0].port: 65536: must be 1 to 65535"),
        ({"name": "a", "port": 81, "pass": "http://b"}, "proxy[0].port: not together with pass"),
        *(
            ({"name": "a", "pass": url}, "proxy[0].pass: ")
            for url in (
                "b:80",
                "ftp://b",
                "http://",
                "http://b:0",
                "http://b:99999",
                "http://10.0.0.256",
                "http://10.1",
                "http://user@b",
                "http://b/?x",
                "http://b/#x",
                "http://b/a\nb",
                "http://b;x",
                "http://b/$x",
                "http://b/a/../c",
                80,
            )
        ),
        *(
            ({"name": "a", "raw": raw}, "proxy[0].raw: ")
            for raw in (
                "proxy_read_timeout 1h",
                "a b; }",
                "if (x) { return 200; }",
                'add_header X "a;',
                "add_header X 'a\";",
                'x"y "z;";',
                "a; # b;",
                ";",
                "a\\",
                "a\0;",
                "ä;",
                "a " + "b" * 4096 + ";",
                7,
            )
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(entry: t.Any, problem: str) -> None:
    routes, problems = parsed(entry)
    assert routes == ()
    assert any(problem in text for text in problems), problems


def test_a_route_twice_names_both_places() -> None:
    _routes, problems = parsed({"name": "a"}, {"name": "b"}, {"name": "A", "path": "/", "port": 81})
    assert problems == ("instances[0].proxy[2]: a/ is there already, in instances[0].proxy[0]",)


def test_places_are_those_of_the_original_list() -> None:
    problems = Problems()
    spec.parse_indexed([(1, {"name": ""})], "instances[0].proxy", problems)
    assert problems.texts[0].startswith("instances[0].proxy[1].name: ")


def test_all_mistakes_of_the_parameters_come_together() -> None:
    params = {
        "instance": "a.b",
        "config_dir": "/etc/../x y",
        "declared": [{"name": "a"}],
        "proxy_policy": {"projects": [], "allow_raw": False},
        "install": True,
    }
    with pytest.raises(InvalidInput) as caught:
        spec.parse(params, "default")
    assert [text.partition(":")[0] for text in caught.value.problems] == ["instance", "config_dir", "declared[0]"]
    params["proxy_policy"] = {"alow_raw": True, "projects": "shop"}
    with pytest.raises(InvalidInput) as caught:
        spec.parse(params, "default")
    assert caught.value.problems[3:] == (
        "proxy_policy.alow_raw: unknown key (did you mean allow_raw?)",
        'proxy_policy.projects: "shop": must be a list, such as [shop]',
    )


@pytest.mark.parametrize(
    ("raw", "policy"),
    [
        (None, spec.Policy()),
        ({}, spec.Policy()),
        ({"projects": ["shop"], "allow_raw": "yes"}, spec.Policy(frozenset({"shop"}), True)),
        ({"allow_raw": False}, spec.Policy()),
    ],
)
def test_the_policy(raw: object, policy: spec.Policy) -> None:
    params = {"instance": "a", "config_dir": "/etc/nginx", "declared": [], "proxy_policy": raw, "install": True}
    assert spec.parse(params, "default").policy == policy


@given(st.text(max_size=30), st.sampled_from(HARMFUL), st.text(max_size=30))
def test_what_means_something_to_nginx_is_refused(before: str, sign: str, after: str) -> None:
    text = before + sign + after
    for entry in ({"name": text}, {"name": "a", "path": "/" + text}, {"name": "a", "pass": "http://b/x" + text + "x"}):
        routes, problems = parsed(entry)
        assert routes == ()
        assert problems != ()


@given(st.text(alphabet="ab;{}\"'\\$# \n", max_size=40))
def test_raw_holds_whole_directives_only(text: str) -> None:
    """Read as nginx does: a quote counts at the start of a word, and what ends a word is a blank or a semicolon."""
    routes, _problems = parsed({"name": "a", "raw": text})
    if not routes:
        return
    quote, escaped, start, directive = "", False, True, False
    for sign in routes[0].raw:
        if escaped:
            escaped = False
        elif sign == "\\":
            escaped = True
        elif quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and start:
            quote, start, directive = sign, False, True
        elif sign in " \n;":
            start = True
            directive = directive and sign != ";"
        else:
            assert sign not in "{}#"
            start, directive = False, True
    assert (quote, escaped, directive) == ("", False, False)
