# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of the proxy, as tables and properties. The proxy is played by ``carry_out``, which does what a plan says."""

from __future__ import annotations

import dataclasses
import json
import random
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mage.lxd.plugins.module_utils import _hosts, _keys
from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput, MageError
from ansible_collections.mage.lxd.plugins.module_utils._proxy import plan, render, spec
from ansible_collections.mage.lxd.plugins.module_utils._server.published import Publisher
from ansible_collections.mage.lxd.plugins.module_utils._server.snapshot import Address

HOSTS = "127.0.0.1 localhost\n::1 ip6-localhost"
EMPTY = plan.Live(True, render.Facts(version="1.22.1"), True, hosts=HOSTS)
DESIRED = spec.Desired("mageproxy", "default")
RAW = dataclasses.replace(DESIRED, policy=spec.Policy(allow_raw=True))
DECLARED_PROXY = {"project": "default", "name": "mageproxy", "status": "Running"}


def address(text: str, network: str = "lxdbr0", pinned: bool = True) -> Address:
    return Address("eth0", network, 6 if ":" in text else 4, text, pinned)


def publisher(
    name: str, *routes: t.Any, project: str = "default", at: t.Any = None, hostnames: t.Any = None, **fields: t.Any
) -> Publisher:
    """An instance with routes; its address is made of the last letter of its name, if ``at`` does not say another."""
    addresses = (address(f"10.64.0.{ord(name[-1])}"),) if at is None else tuple(at)
    config = {_keys.PROXY: json.dumps(list(routes))} if routes else {_keys.MANAGED: "{}"}
    if hostnames is not None:
        config[_keys.HOSTNAMES] = json.dumps(hostnames)
    return Publisher(project, name, "Running", "none", config, addresses, **fields)


def planned(
    *publishers: Publisher,
    live: plan.Live = EMPTY,
    desired: spec.Desired = DESIRED,
    check_mode: bool = False,
    refused: t.Optional[dict[str, str]] = None,
) -> plan.ProxyPlan:
    return plan.plan(desired, plan.Observed(publishers, frozenset({"lxdbr0"}), live), check_mode, refused)


def carry_out(made: plan.ProxyPlan) -> plan.Live:
    """What is in the proxy after a plan."""
    serving = render.generation(made.files)
    return plan.Live(True, EMPTY.facts, True, serving, f"{serving}.abcdef", plan.LINKS, made.files, made.hosts)


def served(made: plan.ProxyPlan) -> dict[str, list[str]]:
    return {one["name"] + one["path"]: one["servers"] for one in plan.present(made)["vhosts"]}


def route(name: str, path: str = "/", **fields: t.Any) -> dict[str, t.Any]:
    return {"name": name, "path": path, **fields}


WEB_A = publisher("web-a", route("a.example.org"))


def test_instances_of_one_project_share_a_route() -> None:
    made = planned(publisher("web-b", route("a.example.org")), WEB_A)
    assert served(made) == {"a.example.org/": ["10.64.0.97:80", "10.64.0.98:80"]}
    assert made.files["upstream.conf"].count("server 10.64.0.9") == 2
    assert plan.present(made)["vhosts"][0]["instances"] == ["default/web-a", "default/web-b"]


def test_what_is_declared_and_shared_with_something_else_is_told() -> None:
    made = planned(publisher("web-b", route("a.example.org"), declared=True), WEB_A)
    assert made.warnings == (
        "a.example.org/ (default/web-b): default/web-a serves it too, and this run does not declare that",
    )


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (publisher("web-b", route("a.example.org", port=81)), "default/web-a has it already"),
        (publisher("web-b", {"name": "a.example.org", "pass": "http://10.0.0.1"}), "default/web-a has it already"),
        (publisher("web-b", route("a.example.org"), project="p"), "default/web-a has it already"),
        (publisher("web-b", route("a b")), 'user.mage.proxy[0].name: "a b": must be a hostname'),
        (publisher("web-b", route("b.example.org", raw="a b;")), "raw directives are only taken with"),
        (publisher("web-b", route("b.example.org"), restricted=True), "project default is restricted"),
        (publisher("web-b", hostnames="x"), 'user.mage.hostnames: "x": must be a list'),
        (publisher("web-b", hostnames=["a_b c"]), 'user.mage.hostnames[0]: "a_b c": must be a hostname'),
        (publisher("web-b", hostnames=["localhost"]), "hostname localhost is reserved"),
        (publisher("web-b", hostnames=["web-a"]), "hostname web-a is the name of an instance"),
    ],
)
def test_a_mistake_is_an_error_where_it_is_declared_and_else_left_out(second: Publisher, reason: str) -> None:
    made = planned(WEB_A, second)
    assert served(made) == {"a.example.org/": ["10.64.0.97:80"]}
    assert [one.instance for one in made.left_out] == [second.label]
    assert reason in made.left_out[0].reason
    assert f"left out: {second.label}: {made.left_out[0].reason}" in made.warnings
    with pytest.raises(InvalidInput, match="web-b: ") as caught:
        planned(dataclasses.replace(WEB_A, declared=True), dataclasses.replace(second, declared=True))
    assert reason in caught.value.problems[0]


def web(name: str, port: int = 80, **fields: t.Any) -> Publisher:
    return publisher(name, route("a.example.org", port=port), **fields)


def guest(name: str, **fields: t.Any) -> Publisher:
    return web(name, project="p", restricted=True, **fields)


GUESTS = dataclasses.replace(DESIRED, policy=spec.Policy(frozenset({"p"})))


@pytest.mark.parametrize(
    ("before", "after", "holder"),
    [
        # A key that was set by hand takes no route that is served.
        ([web("web-b")], [web("web-b"), web("web-a", 81)], "default/web-b"),
        ([web("web-b"), web("web-c")], [web("web-b", 81), web("web-c")], "default/web-c"),
        ([web("web-b")], [web("web-b", 82), web("web-a", 81)], "default/web-b"),
        ([web("web-b")], [web("web-b"), web("web-a", project="another")], "default/web-b"),
        ([guest("web-b")], [guest("web-b"), web("web-c")], "default/web-c"),
        ([web("web-b")], [web("web-b"), guest("web-a")], "default/web-b"),
        ([], [web("web-b"), web("web-a", 81)], "default/web-a"),
        ([], [web("web-b"), web("web-a", project="another")], "default/web-b"),
        # What a run declares and has is not lost to a key that was set by hand, nor are names to a guest.
        ([web("web-b")], [web("web-b", declared=True), web("web-a", 81)], "default/web-b"),
        ([guest("web-b")], [guest("web-b"), web("web-c", declared=True)], "default/web-c"),
    ],
)
def test_a_route_stays_with_whom_it_is_served_for(before: list[Publisher], after: list[Publisher], holder: str) -> None:
    live = carry_out(planned(*before, desired=GUESTS)) if before else EMPTY
    for publishers in (after, after[::-1]):
        made = planned(*publishers, live=live, desired=GUESTS)
        assert plan.present(made)["vhosts"][0]["instances"] == [holder]
        assert holder in made.left_out[0].reason
        again = planned(*publishers, live=carry_out(made), desired=GUESTS)
        assert (again.changes, again.left_out) == ((), made.left_out)


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        (
            [web("web-a")],
            [web("web-a"), web("web-b", 81, declared=True)],
            "default/web-b: a.example.org/: default/web-a has it already: ",
        ),
        (
            [],
            [web("web-a", declared=True), web("web-b", 81)],
            "default/web-a: a.example.org/: default/web-b has it already: ",
        ),
        (
            [web("web-a")],
            [web("web-a", 81, declared=True), web("web-b", 82, declared=True)],
            "default/web-b: a.example.org/: default/web-a has it already: ",
        ),
        (
            [web("web-a"), web("web-b")],
            [web("web-a", 81, declared=True), web("web-b")],
            "default/web-a: a.example.org/: default/web-b has it already: ",
        ),
        (
            [],
            [guest("web-a", declared=True), web("web-b")],
            "p/web-a: a.example.org: project default publishes that name, with default/web-b",
        ),
    ],
)
def test_what_is_declared_and_would_take_a_route_from_another_is_an_error_that_names_both(
    before: list[Publisher], after: list[Publisher], problem: str
) -> None:
    live = carry_out(planned(*before, desired=GUESTS)) if before else EMPTY
    for publishers in (after, after[::-1]):
        with pytest.raises(InvalidInput) as caught:
            planned(*publishers, live=live, desired=GUESTS)
        assert [text[: len(problem)] for text in caught.value.problems] == [problem]


def test_two_playbooks_that_declare_one_route_do_not_flip_the_proxy() -> None:
    live = carry_out(planned(web("web-a", declared=True)))
    with pytest.raises(InvalidInput, match=r"default/web-b: a\.example\.org/: default/web-a has it already"):
        planned(web("web-a"), web("web-b", 81, declared=True), live=live)
    made = planned(web("web-a", declared=True), web("web-b", 81), live=live)
    assert (made.files, [one.instance for one in made.left_out]) == (live.files, ["default/web-b"])


NAMED: dict[str, t.Any] = {"hostnames": ["db.example.org", "web-b"]}


@pytest.mark.parametrize("declared", ["", "a", "c", "ac"])
def test_a_hostname_has_one_holder_on_the_host_and_in_the_proxy_whosever_run_it_is(declared: str) -> None:
    found = [
        publisher("web-c", **NAMED, declared="c" in declared),
        publisher("web-a", **NAMED, project="p", declared="a" in declared),
        publisher("web-b"),
        publisher("web-0", **NAMED, project="a", restricted=True),
    ]
    entries, warnings = _hosts.entries(found, {"a"})
    assert [(entry.address, entry.names) for entry in entries] == [
        ("10.64.0.98", ("web-b",)),
        ("10.64.0.99", ("web-c", "db.example.org")),
        ("10.64.0.48", ("web-0",)),
        ("10.64.0.97", ("web-a",)),
    ]
    assert len(warnings) == 5
    by_hand = [dataclasses.replace(one, declared=False) for one in found]
    policy = dataclasses.replace(DESIRED, policy=spec.Policy(frozenset({"a"})))
    made = planned(*by_hand, desired=policy)
    lines = made.hosts.splitlines()[3:-1]
    assert sorted(lines) == sorted(f"{one.address} {name}" for one in entries for name in one.names)
    if declared:
        with pytest.raises(InvalidInput) as caught:
            planned(*found, desired=policy)
        told = "p/web-a: hostname db.example.org is that of default/web-c"
        assert (told in caught.value.problems) == ("a" in declared)


def test_a_copy_publishes_nothing() -> None:
    copied = {_keys.PROXY: _keys.encode([route("a.example.org")], "default", "web-a")}
    made = planned(WEB_A, dataclasses.replace(publisher("web-b"), config=copied))
    assert served(made) == {"a.example.org/": ["10.64.0.97:80"]}
    assert "was written for default/web-a" in made.left_out[0].reason


def test_a_restricted_project_publishes_itself_and_no_name_of_others() -> None:
    desired = dataclasses.replace(DESIRED, policy=spec.Policy(frozenset({"p"}), True))
    guest = publisher(
        "guest-c",
        route("a.example.org", "/login"),
        route("c.example.org"),
        {"name": "d.example.org", "pass": "http://169.254.169.254"},
        route("e.example.org", raw="alias /etc/;"),
        project="p",
        restricted=True,
    )
    made = planned(WEB_A, guest, desired=desired)
    assert set(served(made)) == {"a.example.org/", "c.example.org/"}
    assert len(made.left_out) == 3
    assert set(served(planned(WEB_A, guest))) == {"a.example.org/"}


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ("*.shop.example.org", "login.shop.example.org"),
        ("*.example.org", "login.shop.example.org"),
        ("*.example.org", "*.shop.example.org"),
        ("login.shop.example.org", "*.shop.example.org"),
        ("login.shop.example.org", "*.example.org"),
    ],
)
def test_a_restricted_project_gets_between_no_name_and_its_asterisk(own: str, theirs: str) -> None:
    def of_another(name: str, restricted: bool) -> Publisher:
        return publisher("web-c", route(name), project="p", restricted=restricted)

    mine = publisher("web-b", route(own))
    made = planned(mine, of_another(theirs, True), desired=GUESTS)
    assert set(served(made)) == {f"{own}/"}
    (left,) = made.left_out
    assert left.reason == f"{theirs}: project default publishes {own}, with default/web-b"
    assert set(served(planned(mine, of_another(theirs, False)))) == {f"{own}/", f"{theirs}/"}
    assert not planned(mine, of_another("shop.example.com", True), desired=GUESTS).left_out


def test_no_restricted_project_decides_where_a_pass_leads() -> None:
    made = planned(
        publisher("web-a", {"name": "1", "pass": "https://api.example.net"}, {"name": "2", "pass": "http://web-b"}),
        publisher("web-b", hostnames=["api.example.net"], project="p", restricted=True),
        desired=GUESTS,
    )
    assert served(made) == {"1/": ["api.example.net:443"], "2/": ["web-b:80"]}


def test_pass_by_name_goes_to_the_instance_and_else_is_looked_up_while_nginx_runs() -> None:
    made = planned(
        publisher("web-a", {"name": "1", "pass": "http://WEB-B:8080"}, {"name": "2", "pass": "https://back/x/"}),
        publisher("web-b", {"name": "3", "path": "/p/", "pass": "https://far.example.org/q/"}, hostnames=["back"]),
    )
    assert served(made) == {
        "1/": ["10.64.0.98:8080"],
        "2/": ["10.64.0.98:443"],
        "3/p/": ["far.example.org:443"],
    }
    assert "far.example.org" not in made.files["upstream.conf"]
    assert 'rewrite "^/p/(.*)$" "/q/$1" break;' in made.files["vhosts/3.conf"]
    assert "proxy_pass https://$mage_backend;" in made.files["vhosts/3.conf"]


def test_without_an_address_the_rest_is_served() -> None:
    lost = publisher("web-b", route("b.example.org"), at=())
    made = planned(WEB_A, lost, publisher("web-c", {"name": "c", "pass": "http://web-b"}))
    assert served(made) == {"a.example.org/": ["10.64.0.97:80"], "b.example.org/": [], "c/": []}
    assert made.files["upstream.conf"].count("server 127.0.0.1:9 down;") == 2
    assert len([one for one in made.warnings if "answers 502: no " in one]) == 2
    assert "web-b" not in made.hosts


def test_without_a_nameserver_a_name_leads_nowhere() -> None:
    live = dataclasses.replace(EMPTY, facts=render.Facts(resolvers=(), version="1"))
    made = planned(publisher("web-a", {"name": "a", "pass": "http://far.example.org"}), live=live)
    assert served(made) == {"a/": []}
    assert "resolver " not in made.files["nginx.conf"]


@pytest.mark.parametrize(
    ("addresses", "chosen"),
    [
        ([address("fd00::1"), address("10.1.0.1")], "10.1.0.1"),
        ([address("10.1.0.1", "other"), address("10.2.0.1")], "10.2.0.1"),
        ([address("10.1.0.1", pinned=False), address("10.2.0.1")], "10.2.0.1"),
        ([address("fd00::1")], "[fd00::1]"),
    ],
)
def test_the_address_on_the_proxys_own_network_is_taken(addresses: list[Address], chosen: str) -> None:
    assert served(planned(publisher("web-a", route("a"), at=addresses))) == {"a/": [f"{chosen}:80"]}


def test_the_hosts_file_keeps_its_other_lines() -> None:
    first = planned(publisher("web-a", hostnames=["Shop.example.org", "web-a"]), publisher("mageproxy"))
    block = "# BEGIN mage.lxd: instances\n10.64.0.97 shop.example.org\n10.64.0.97 web-a\n# END mage.lxd\n"
    assert first.hosts == HOSTS + "\n" + block
    later = dataclasses.replace(EMPTY, hosts="before\n" + block + "after")
    assert planned(live=later).hosts == "before\nafter"
    assert (
        planned(publisher("web-b"), live=later).hosts
        == "before\n" + block.replace("10.64.0.97 shop.example.org\n10.64.0.97 web-a", "10.64.0.98 web-b") + "after"
    )


def test_a_torn_block_of_the_hosts_file_takes_no_other_line_along() -> None:
    torn = f"{render.HOSTS_BEGIN}\nmine\n{render.HOSTS_BEGIN}\nold\n{render.HOSTS_END}\nlast\n"
    assert render.hosts(torn, {}) == f"{render.HOSTS_BEGIN}\nmine\nlast\n"
    assert render.hosts(render.hosts(torn, {"a": "10.0.0.1"}), {}) == f"{render.HOSTS_BEGIN}\nmine\nlast\n"


def test_a_second_run_changes_nothing() -> None:
    made = planned(WEB_A)
    assert made.changed
    again = planned(WEB_A, live=carry_out(made))
    assert again.changes == ()
    assert not again.stale(carry_out(made))


@pytest.mark.parametrize(
    ("drift", "told"),
    [
        ({"files": {"vhosts/a.example.org.conf": "mine"}}, "mageproxy:/etc/nginx/vhosts/a.example.org.conf"),
        ({"files": {"vhosts/more.conf": "mine"}}, "mageproxy:/etc/nginx/vhosts/more.conf"),
        ({"files": {"generation.conf": "mine"}}, "mageproxy:/etc/nginx/generation.conf"),
        ({"links": {"nginx.conf": "nginx.dist"}}, "mageproxy:/etc/nginx/nginx.conf"),
        ({"running": False}, "nginx in default/mageproxy"),
        ({"serving": "older"}, "nginx in default/mageproxy"),
        ({"hosts": HOSTS}, "mageproxy:/etc/hosts"),
    ],
)
def test_what_somebody_changed_is_put_right(drift: dict[str, t.Any], told: str) -> None:
    made = planned(WEB_A)
    live = carry_out(made)
    fields: dict[str, t.Any] = {
        name: {**getattr(live, name), **value} if isinstance(value, dict) else value for name, value in drift.items()
    }
    drifted = dataclasses.replace(live, **fields)
    again = planned(WEB_A, live=drifted)
    assert [change.subject for change in again.changes] == [told]
    assert again.stale(drifted) == ("hosts" not in drift)
    assert planned(WEB_A, live=carry_out(again)).changes == ()


def test_without_a_proxy_it_is_said_who_is_not_served() -> None:
    gone = plan.Live()
    assert planned(live=gone) == plan.ProxyPlan()
    told = planned(WEB_A, live=gone)
    assert (told.changed, len(told.warnings)) == (False, 1)
    assert "a.example.org: default/mageproxy does not run" in told.warnings[0]
    with pytest.raises(MageError, match="default/mageproxy does not run"):
        planned(dataclasses.replace(WEB_A, declared=True), live=gone)


def test_in_check_mode_a_proxy_to_come_is_shown() -> None:
    desired = dataclasses.replace(DESIRED, declared=(DECLARED_PROXY,))
    shown = planned(WEB_A, live=plan.Live(), desired=desired, check_mode=True)
    assert "mageproxy:/etc/nginx/vhosts/a.example.org.conf" in [change.subject for change in shown.changes]
    assert "nginx in default/mageproxy" in [change.subject for change in shown.changes]


def test_nginx_is_not_installed_against_the_users_will() -> None:
    bare = dataclasses.replace(EMPTY, facts=render.Facts())
    with pytest.raises(MageError, match="nginx is not installed, and install is false"):
        planned(WEB_A, live=bare, desired=dataclasses.replace(DESIRED, install=False))


NGINX_SAYS = """\
2026/11/21 08:43:24 [emerg] 731#731: unknown directive "proxi" in /etc/nginx/mage/x.abcdef/vhosts/a.conf:{line}
nginx: configuration file /etc/nginx/mage/x.abcdef/nginx.conf test failed"""


def refused_by_nginx(*publishers: Publisher) -> tuple[plan.ProxyPlan, dict[str, str]]:
    made = planned(*publishers, desired=RAW)
    lines = made.files["vhosts/a.conf"].splitlines()
    output = NGINX_SAYS.format(line=lines.index("        proxi on;") + 1)
    return made, plan.blamed(output, made, plan.Observed(publishers, frozenset(), EMPTY))


BAD = publisher("web-a", route("a", "/bad", raw="proxi on;"), route("a", "/good"))


def test_what_nginx_refuses_is_left_out_and_stays_out() -> None:
    _made, refused = refused_by_nginx(BAD)
    assert list(refused.values()) == ['unknown directive "proxi"']
    left = planned(BAD, desired=RAW, refused=refused)
    assert served(left) == {"a/good": ["10.64.0.97:80"]}
    assert left.left_out[0].reason == 'a/bad: nginx refuses it: unknown directive "proxi"'
    again = planned(BAD, desired=RAW, live=carry_out(left))
    assert again.changes == ()
    assert again.left_out == left.left_out


def test_what_nginx_refused_is_tried_again_once_it_or_nginx_is_another() -> None:
    _made, refused = refused_by_nginx(BAD)
    live = carry_out(planned(BAD, desired=RAW, refused=refused))
    mended = publisher("web-a", route("a", "/bad", raw="proxy_buffering on;"), route("a", "/good"))
    assert set(served(planned(mended, desired=RAW, live=live))) == {"a/bad", "a/good"}
    newer = dataclasses.replace(live, facts=render.Facts(version="1.26"))
    assert set(served(planned(BAD, desired=RAW, live=newer))) == {"a/bad", "a/good"}
    declared = dataclasses.replace(BAD, declared=True)
    assert set(served(planned(declared, desired=RAW, live=live))) == {"a/bad", "a/good"}


def test_what_nginx_refuses_of_this_runs_own_is_an_error_that_names_it() -> None:
    with pytest.raises(InvalidInput) as caught:
        refused_by_nginx(dataclasses.replace(BAD, declared=True))
    assert caught.value.problems == ('a/bad (default/web-a): nginx refuses it: unknown directive "proxi"',)


def test_a_refusal_that_names_no_vhost_is_an_error() -> None:
    made = planned(WEB_A)
    output = 'nginx: [emerg] getpwnam("x") failed in /etc/nginx/mage/x.abcdef/nginx.conf:2\n'
    with pytest.raises(MageError, match=r'nothing was changed: getpwnam\("x"\) failed'):
        plan.blamed(output, made, plan.Observed((), frozenset(), EMPTY))


def test_facts_are_read_as_told() -> None:
    told = "version 1.22.1\nuser nginx\nresolver 10.0.0.1\nresolver fe80::1%eth0\nresolver fe80::1\nresolver x;y\n"
    live = plan.live_from(told + "running yes\nserving default abc\nlink vhosts /a b\ncurrent abc.x", {}, "")
    assert live.facts == render.Facts("nginx", ("10.0.0.1",), "1.22.1")
    assert (live.running, live.serving, live.current, live.links) == (True, "abc", "abc.x", {"vhosts": "/a b"})
    assert plan.live_from("", {}, "") == plan.Live(True)


NAMES = st.sampled_from(["a.example.org", "*.example.org", "b.example.org", "web-b", "a" * 63 + "." + "b" * 63])
PATHS = st.sampled_from(["/", "/a", "/a/", "/a/b", "/~x/", "/a(1)+*/", "/apis"])
BACKENDS = st.sampled_from(
    ["", "http://web-b", "https://far.example.org/x/", "http://10.0.0.1:81/", "http://[fd00::1]"]
)
ROUTES = st.builds(lambda name, path, url: {"name": name, "path": path, "pass": url}, NAMES, PATHS, BACKENDS)
PUBLISHERS = st.lists(
    st.builds(
        lambda name, routes, project, at, restricted: publisher(
            name, *routes, project=project, at=at, restricted=restricted and project == "p"
        ),
        st.sampled_from(["web-a", "web-b", "web-c"]),
        st.lists(ROUTES, max_size=4, unique_by=lambda one: (one["name"], one["path"])),
        st.sampled_from(["default", "p"]),
        st.sampled_from([None, ()]),
        st.booleans(),
    ),
    max_size=5,
    unique_by=lambda one: (one.project, one.name),
)


@given(PUBLISHERS, st.randoms())
def test_the_order_of_the_input_does_not_matter_and_what_was_done_is_done(
    publishers: list[Publisher], chance: random.Random
) -> None:
    made = planned(*publishers)
    shuffled = list(publishers)
    chance.shuffle(shuffled)
    assert planned(*shuffled).files == made.files
    assert planned(*shuffled).hosts == made.hosts
    assert planned(*publishers, live=carry_out(made)).changes == ()
    assert planned(live=carry_out(made)).files == planned().files


@given(PUBLISHERS)
def test_every_block_is_closed_and_every_upstream_is_there(publishers: list[Publisher]) -> None:
    made = planned(*publishers)
    for path, text in made.files.items():
        if path.endswith(".conf"):
            assert text.count("{") == text.count("}"), path
    for vhost in made.vhosts:
        text = made.files[render.vhost_file(vhost.name)]
        for location in vhost.locations:
            name = render.upstream(vhost.name, location.path)
            assert (f"upstream {name} {{" in made.files["upstream.conf"]) == (not location.target.dynamic)
            assert (f"://{name}" in text) == (not location.target.dynamic)


@given(st.text())
def test_a_string_of_nginx_means_itself_or_is_none(text: str) -> None:
    try:
        made = render.quoted(text)
    except ValueError:
        return
    assert made == f'"{text}"'
    assert not set(text) & set("\"\\$'\n\r\0")


@given(NAMES, NAMES)
def test_no_two_vhosts_share_a_file(one: str, other: str) -> None:
    assert (render.vhost_file(one) == render.vhost_file(other)) == (one == other)


def test_names_of_files_fit_a_file_system() -> None:
    name = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert len(render.vhost_file(name).partition("/")[2]) <= 255
    assert render.vhost_file(name) != render.vhost_file(name[:-1] + "e")


def test_a_path_ends_where_a_segment_ends() -> None:
    text = planned(publisher("web-a", route("a", "/api"), route("a", "/api/x/"))).files["vhosts/a.conf"]
    assert [line.strip() for line in text.splitlines() if "location" in line] == [
        'location = "/api" {',
        'location "/api/" {',
        'location "/api/x/" {',
        "location / {",
    ]
    both = planned(publisher("web-a", route("a", "/api"), route("a", "/api/"))).files["vhosts/a.conf"]
    assert both.count('location "/api/"') == 1
