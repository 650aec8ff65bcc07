# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the client programs cannot know or do: each entry of the list in docs/servers.md, beside what rest does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import operations, options, runner
from ansible_collections.mage.lxd.plugins.module_utils._server.cli import CliDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.core import CoreDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed, api
from ansible_collections.mage.lxd.tests.integration import doors, image_server, server
from ansible_collections.mage.lxd.tests.integration.playbook import ROOT

SECRET = "canary-4711"
SOCKETS = {doors.LXD: doors.LXD_SOCKET, doors.INCUS: doors.INCUS_SOCKET}


class Client(runner.LocalRunner):
    """The client as it is. Notes its commands, and does something before one of them."""

    def __init__(self, path: str, before: str = "", act: t.Optional[t.Callable[[], object]] = None) -> None:
        super().__init__(path)
        self.ran: list[str] = []
        self._before, self._act = before, act

    def run(self, argv: t.Sequence[str], *args: t.Any, **kwargs: t.Any) -> Completed:
        self.ran.append(" ".join(word for word in argv[1:] if not word.startswith("-")))
        if self._act and self.ran[-1].startswith(self._before):
            self._act()
        return super().run(argv, *args, **kwargs)


class Two(t.NamedTuple):
    """Both drivers of one server."""

    host: doors.Server
    rest: CoreDriver
    cli: CliDriver
    client: Client

    def fail(self, *request: t.Any, **more: t.Any) -> tuple[_errors.ServerError, _errors.ServerError]:
        """What a request that fails raises by rest and by cli."""
        with pytest.raises(_errors.ServerError) as rest:
            self.rest.request(*request, **more)
        with pytest.raises(_errors.ServerError) as cli:
            self.cli.request(*request, **more)
        return rest.value, cli.value


@pytest.fixture(params=SOCKETS, ids=lambda host: host.name)
def two(request: pytest.FixtureRequest) -> t.Iterator[Two]:
    host: doors.Server = request.param
    way = options.ServerOptions(f"unix://{SOCKETS[host]}")
    client = Client(SOCKETS[host])
    made = Two(host, CoreDriver(way), CliDriver(way, client, host.client[0]), client)
    yield made
    made.rest.close()
    made.cli.close()


@pytest.fixture(scope="module")
def names() -> t.Iterator[dict[doors.Server, str]]:
    """A running busybox container on each server that was asked for."""
    made: dict[doors.Server, str] = {}
    yield made
    for host, name in made.items():
        host.delete(name)


@pytest.fixture
def box(two: Two, names: dict[doors.Server, str]) -> str:
    if two.host not in names:
        names[two.host] = server.own_prefix() + "-box"
        two.host.run("launch", two.host.image, names[two.host])
    return names[two.host]


def config(two: Two, box: str) -> dict[str, str]:
    return dict(two.host.query(f"/1.0/instances/{box}")["config"])


def test_answers_have_no_headers_and_come_when_all_is_done(two: Two, box: str) -> None:
    assert "content-type" in two.rest.request("GET", api("instances", box)).headers
    assert set(two.cli.request("GET", api("instances", box)).headers) == {"etag"}
    source = {"type": "image", "alias": two.host.image}
    by_rest = two.rest.request("POST", api("instances"), body={"name": f"{box}-rest", "source": source})
    assert (by_rest.status, by_rest.json["type"]) == (202, "async")
    operations.wait(two.rest, by_rest, "create")
    by_cli = two.cli.request("POST", api("instances"), body={"name": f"{box}-cli", "source": source})
    assert (by_cli.status, by_cli.json["type"]) == (200, "sync")
    two.host.run("delete", f"{box}-rest", f"{box}-cli")


def test_statuses_are_read_from_words(two: Two, box: str) -> None:
    rest, cli = two.fail("PATCH", api("instances", box), body={"config": {"limits.cpu": "x"}})
    assert rest.message == cli.message == "Invalid config: Invalid CPU limit syntax"
    assert (rest.status, cli.status) == (500, 400)
    rest, cli = two.fail("POST", api("profiles"), body={"name": "default"})
    assert rest.message == cli.message
    assert "The profile already exists" in cli.message
    # Of queries, Incus' client hands out the whole answer.
    assert (rest.status, cli.status) == (500, 400 if two.host is doors.LXD else 500)


def test_types_are_refused_in_words_of_our_own(two: Two, box: str) -> None:
    rest, cli = two.fail("PATCH", api("instances", box), body={"config": {"user.a": 1}})
    assert rest.status == cli.status == 400
    assert rest.message.startswith("json: cannot unmarshal number")
    assert cli.message == "config: user.a: must be a string"


def test_a_write_in_the_moment_before_ours_is_lost(two: Two, box: str) -> None:
    key = "user.others"

    def meddle() -> None:
        two.host.run("config", "set", box, f"{key}=1")

    def patch(driver: t.Any, etag: str) -> None:
        driver.request("PATCH", api("instances", box), body={"config": {"user.a": "1"}}, headers={"If-Match": etag})

    etag = two.rest.request("GET", api("instances", box)).headers["etag"]
    meddle()
    with pytest.raises(_errors.PreconditionFailed):
        patch(two.rest, etag)
    two.host.run("config", "unset", box, key)
    # What was written before we compare is seen.
    etag = two.cli.request("GET", api("instances", box)).headers["etag"]
    meddle()
    with pytest.raises(_errors.PreconditionFailed):
        patch(two.cli, etag)
    two.host.run("config", "unset", box, key)
    slow = CliDriver(two.cli.options, Client(SOCKETS[two.host], "config edit", meddle), two.host.client[0])
    patch(slow, slow.request("GET", api("instances", box)).headers["etag"])
    assert key not in config(two, box)
    assert config(two, box)["user.a"] == "1"


def test_what_only_fits_on_a_command_line_is_refused(two: Two) -> None:
    name = server.own_prefix()
    body = {"name": name, "config": {"user.a": SECRET}}
    assert two.rest.request("POST", api("profiles"), body=body).status == 201
    two.rest.request("DELETE", api("profiles", name))
    remote = {"type": "image", "server": "https://127.0.0.1:1", "fingerprint": "ab" * 32, "secret": SECRET}
    for path, refused in (
        (api("profiles"), body),
        (api("networks"), body),
        (api("projects"), body),
        (api("images"), {"source": remote}),
    ):
        with pytest.raises(_errors.ServerError, match="takes this only on its command line") as e:
            two.cli.request("POST", path, body=refused)
        assert e.value.status == 501
        assert SECRET not in str(e.value)
    assert two.client.ran == []


def test_some_things_are_written_after_the_instance_is_made(two: Two) -> None:
    name = server.own_prefix()
    source = {"type": "image", "alias": two.host.image}
    try:
        two.cli.request("POST", api("instances"), body={"name": name, "source": source, "description": "ours"})
        first, *_read, last = two.client.ran
        assert (first.split()[0], last) == ("init", f"config edit local:{name}")
        assert two.host.query(f"/1.0/instances/{name}")["description"] == "ours"
        two.host.run("config", "set", name, "user.a=1", "user.b=1")
        for driver, suffix in ((two.rest, "rest"), (two.cli, "cli")):
            body = {"name": f"{name}-{suffix}", "source": {"type": "copy", "source": name}, "profiles": ["default"]}
            operations.run(driver, "POST", api("instances"), body={**body, "config": {"user.b": SECRET}})
            made = config(two, f"{name}-{suffix}")
            assert (made["user.a"], made["user.b"]) == ("1", SECRET)
        assert two.client.ran[-1] == f"config edit local:{name}-cli"
        assert SECRET not in str(two.client.ran)
    finally:
        two.host.delete(name)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("image") / "busybox.tar.gz"
    server.run("bash", str(Path(__file__).with_name("busybox-image.sh")), str(path))
    # Zeros after the end make another image of it.
    return path.read_bytes() + bytes(os.getpid())


def test_images_of_other_servers_stay(two: Two, image: bytes, tmp_path: Path) -> None:
    name = server.own_prefix()
    with image_server.image_server(tmp_path / "images", image, name) as images:
        remote = {"alias": name, "server": images.url, "protocol": "simplestreams", "certificate": images.certificate}
        source = {"type": "image", "mode": "pull", **remote}
        found = []
        for driver in (two.rest, two.cli):
            operations.run(driver, "POST", api("instances"), body={"name": name, "source": source})
            found.append(two.host.query(f"/1.0/images/{images.fingerprint}")["cached"])
            two.host.run("delete", name)
            two.host.run("image", "delete", images.fingerprint)
    assert found == [True, False]


def test_an_image_comes_from_a_file(two: Two, image: bytes, tmp_path: Path) -> None:
    """No difference: what is in a file needs no command line."""
    path = tmp_path / "image"
    path.write_bytes(image + b"\0")
    fingerprint = server.run("sha256sum", str(path)).split()[0]
    for driver in (two.rest, two.cli):
        with path.open("rb") as file:
            headers = {"Content-Type": "application/octet-stream"}
            operations.wait(driver, driver.request("POST", api("images"), body=file, headers=headers), "import")
        two.host.run("image", "delete", fingerprint)


def test_an_instance_without_a_shell(two: Two) -> None:
    name = server.own_prefix()
    two.host.run("launch", two.host.image, name)
    two.host.run("exec", name, "--", "/bin/busybox", "rm", "/bin/sh")
    argv = ["/bin/busybox", "env"]
    for driver in (two.rest, two.cli):
        assert driver.execute(name, argv, environment={"LANG": "C.UTF-8"}).stdout.count(b"LANG=C.UTF-8\n") == 1
    assert SECRET.encode() in two.rest.execute(name, argv, environment={"TOKEN": SECRET}).stdout
    with pytest.raises(_errors.ServerError, match="has no shell, and without one") as e:
        two.cli.execute(name, argv, environment={"TOKEN": SECRET})
    assert e.value.status == 501
    two.host.run("delete", "--force", name)


def test_a_command_sees_more_variables(two: Two, box: str) -> None:
    def seen(driver: t.Any) -> set[bytes]:
        return {line.partition(b"=")[0] for line in driver.execute(box, ["env"]).stdout.splitlines()}

    assert seen(two.cli) - seen(two.rest) == {b"MAGE_COMMAND", b"PWD", b"SHLVL"}


def test_a_name_that_no_file_can_have(two: Two, box: str) -> None:
    assert [driver.execute(box, ["x" * 5000]) for driver in (two.rest, two.cli)] == [(255, b"", b""), (127, b"", b"")]


RUN = """
import sys
from ansible_collections.mage.lxd.plugins.module_utils._server import connect, options
driver = connect.connect_core(options.ServerOptions(sys.argv[1], driver=sys.argv[2]))
driver.execute(sys.argv[3], ["sleep", sys.argv[4]])
"""


def test_a_command_goes_on_where_its_caller_was_killed(two: Two, box: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".tree")}

    def running(seconds: str) -> bool:
        seen = two.host.run("exec", box, "--", *server.LINGER, "ps", "-o", "args")
        assert "ps -o args" in seen
        return f"sleep {seconds}\n" in seen

    def until(seconds: str, expected: bool) -> bool:
        end = time.monotonic() + 60
        while (found := running(seconds)) is not expected and time.monotonic() < end:
            time.sleep(0.1)
        return found

    left = []
    for driver, seconds in (("rest", "4721"), ("cli", "4722")):
        argv = [sys.executable, "-c", RUN, two.cli.options.endpoint, driver, box, seconds]
        process = subprocess.Popen(argv, env=environment)
        assert until(seconds, True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left.append(until(seconds, False) if driver == "rest" else running(seconds))
    assert left == [False, True]
