# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests on the real server share. Names carry the process id, so that runs side by side keep apart."""

from __future__ import annotations

import functools
import itertools
import os
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.tests.integration import doors as doors_module
from ansible_collections.mage.lxd.tests.integration import engine as engine_module
from ansible_collections.mage.lxd.tests.integration import namespace, nested, playbook, server, table

# This machine has Incus, too. What says nothing else means LXD, in all that the tests start.
os.environ.setdefault("LXD_SOCKET", doors_module.LXD_SOCKET)

NOTHING_MORE = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Let the firewall say what the server says
      mage.lxd.nat:
"""
# Files whose tests publish nothing on this machine's LXD, and so run beside those that do. An instance of ours with an
# address is published already: its name is in the proxy's hosts file.
ASIDE = (
    "test_ahead",
    "test_bridge",
    "test_cli_differences",
    "test_cluster",
    "test_connection_cut",
    "test_connection_doors",
    "test_crashes",
    "test_driver_contract",
    "test_fixtures",
    "test_host",
    "test_instances_images",
    "test_instances_secrets",
    "test_nested",
    "test_peers",
    "test_server_rules",
)
RunPlaybook = t.Callable[..., playbook.PlaybookRun]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say in which lane a test runs."""
    for item in items:
        if item.path.stem in ASIDE:
            item.add_marker("aside")


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[None]:
    """Interrupted runs leave containers and namespaces; the next run deletes them. What the tests published goes in the
    end, as it does for a user: with the next run."""
    server.delete_orphans()
    namespace.delete_orphans()
    yield
    if all(test.get_closest_marker("aside") for test in request.session.items):
        return
    playbook.run_playbook(tmp_path_factory.mktemp("end"), NOTHING_MORE).succeeded()


@pytest.fixture
def run_playbook(tmp_path: Path) -> RunPlaybook:
    """``run_playbook(text, inventory=…, check=True, diff=True, extra_vars={…})`` → playbook.PlaybookRun."""
    counter = itertools.count(1)

    @functools.wraps(playbook.run_playbook)
    def run(*args: t.Any, **kwargs: t.Any) -> playbook.PlaybookRun:
        folder = tmp_path / f"run-{next(counter)}"
        folder.mkdir()
        return playbook.run_playbook(folder, *args, **kwargs)

    return run


@pytest.fixture
def lxd_query() -> t.Callable[..., t.Any]:
    """``lxd_query("/1.0/instances/web-1")``: a raw read by the server's own client."""
    return server.lxd_query


@pytest.fixture
def unique_name() -> t.Iterator[t.Callable[[str], str]]:
    """``unique_name("web")``: an instance name that is free; what bears it is deleted after the test."""
    prefix = server.own_prefix()
    yield lambda suffix: f"{prefix}-{suffix}"
    server.delete_instances(f"{prefix}-")


@pytest.fixture
def client_namespace() -> t.Iterator[namespace.Namespace]:
    """A client outside the host: a network namespace joined by a veth pair. See namespace.Namespace."""
    with namespace.client_namespace() as made:
        yield made


@pytest.fixture(scope="session")
def doors(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[doors_module.Doors]:
    """Every way to a server, opened at its first use. See doors.py."""
    made = doors_module.Doors(tmp_path_factory.mktemp("doors"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def nested_hosts(doors: doors_module.Doors) -> nested.Hosts:
    """A container that is a host itself, and one inside that one: ``nested_hosts.one``, ``nested_hosts.two``."""
    return doors.hosts


@pytest.fixture(params=["lxd", "incus"])
def engine(request: pytest.FixtureRequest, doors: doors_module.Doors) -> t.Iterator[engine_module.Engine]:
    """The instances' wing on each server, in this process; what it made is deleted after the test."""
    asked, options = doors.way(request.param)
    unseen = request.node.get_closest_marker("aside") is not None
    made = engine_module.Engine(asked, options, server.own_prefix(), engine_module.NO_NIC if unseen else {})
    yield made
    asked.delete(f"{made.prefix}-")


@pytest.fixture
def bridge(engine: engine_module.Engine) -> t.Iterator[t.Callable[..., str]]:
    """``bridge("ipv4.address=none")``: the name of a network of its own, gone after the instances on it."""
    made: list[str] = []

    def run(*argv: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                engine.server.run("network", *argv)
                return
            except RuntimeError as error:
                # Incus looks at every interface of the machine, and some are just going.
                if "does not exist" not in str(error) or time.monotonic() > deadline:
                    raise

    def make(*config: str) -> str:
        name = f"{server.own_bridge_name()}{len(made)}"
        run("create", name, *config)
        made.append(name)
        return name

    yield make
    engine.server.delete(f"{engine.prefix}-")
    for name in made:
        run("delete", name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was done through which door."""
    for line in table.lines():
        terminalreporter.write_line(line)
