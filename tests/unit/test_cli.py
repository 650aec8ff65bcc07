# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver of the client programs, with a runner that notes what it is told and answers what a client would."""

from __future__ import annotations

import io
import json
import typing as t

import pytest

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import cli_exec, cli_texts
from ansible_collections.mage.lxd.plugins.module_utils._server.cli import CliDriver
from ansible_collections.mage.lxd.plugins.module_utils._server.command import MARK
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed
from ansible_collections.mage.lxd.plugins.module_utils._server.options import ServerOptions

SECRET = "canary-4711"
BOX = {"name": "box", "config": {"user.a": "1", "user.b": "2"}, "devices": {}, "status": "Running"}


class Client:
    """Notes every command and its standard input; answers queries with one object, all else with ``said``."""

    def __init__(self, said: t.Optional[Completed] = None) -> None:
        self.said = said or Completed(0, b"", b"")
        self.ran: list[tuple[list[str], bytes]] = []

    def run(
        self, argv: t.Sequence[str], stdin: t.Any = b"", output: t.Any = None, *_others: t.Any, **_more: t.Any
    ) -> Completed:
        self.ran.append((list(argv), stdin if isinstance(stdin, bytes) else stdin.read()))
        if "query" in argv and self.said.rc == 0:
            return Completed(0, json.dumps({"type": "sync", "metadata": BOX}).encode(), b"")
        return self.said

    def close(self) -> None:
        """Nothing is held."""


def driver(client: Client) -> CliDriver:
    return CliDriver(ServerOptions("unix:///nowhere"), client, "lxc")


def test_what_a_user_wrote_goes_by_standard_input_alone() -> None:
    client = Client()
    body = {"name": "box", "type": "container", "source": {"type": "image", "alias": "x"}, "config": {"user.s": SECRET}}
    door = driver(client)
    door.request("POST", "/1.0/instances", body=body)
    door.request("PATCH", "/1.0/instances/box", body={"config": {"user.s": SECRET}})
    door.request("PUT", "/1.0/instances/box", body={"config": {"user.s": SECRET}})
    assert [SECRET.encode() in stdin for _argv, stdin in client.ran] == [True, False, True, True]
    assert SECRET not in str([argv for argv, _stdin in client.ran])
    edited = json.loads(client.ran[2][1])
    assert edited["config"] == {"user.a": "1", "user.b": "2", "user.s": SECRET}


def test_what_would_have_to_stand_on_a_command_line_is_refused_without_telling_it() -> None:
    client = Client()
    with pytest.raises(_errors.ServerError, match=r"POST /1\.0/networks: lxc takes this only on its command line") as e:
        driver(client).request("POST", "/1.0/networks", body={"name": "n", "config": {"x": SECRET}})
    assert e.value.status == 501
    assert SECRET not in str(e.value)
    assert client.ran == []


def test_a_write_on_something_changed_is_refused() -> None:
    client = Client()
    door = driver(client)
    etag = door.request("GET", "/1.0/instances/box").headers["etag"]
    door.request("PATCH", "/1.0/instances/box", body={"config": {"user.a": ""}}, headers={"If-Match": etag})
    assert json.loads(client.ran[-1][1])["config"] == {"user.b": "2"}
    with pytest.raises(_errors.PreconditionFailed):
        door.request("PUT", "/1.0/instances/box", body={"config": {}}, headers={"If-Match": "other"})
    assert client.ran[-1][0][3] == "query"


@pytest.mark.parametrize(
    ("said", "kind", "status"),
    [
        ("Error: Instance not found", _errors.NotFound, 404),
        ('Error: Failed to fetch instance "x" in project "p": Instance not found', _errors.NotFound, 404),
        ("noise\nError: ETag doesn't match: a vs b", _errors.PreconditionFailed, 412),
        ("Error: Forbidden", _errors.ServerError, 403),
        ("Error: Invalid instance name", _errors.ServerError, 400),
    ],
)
def test_texts_become_exceptions(said: str, kind: type[_errors.ServerError], status: int) -> None:
    with pytest.raises(kind) as e:
        driver(Client(Completed(1, b"", said.encode()))).request("GET", "/1.0/instances/x")
    assert e.value.status == status
    assert "Error: " not in e.value.message


def test_a_number_where_the_api_wants_a_string_is_refused() -> None:
    with pytest.raises(_errors.ServerError, match=r"config: user\.a: must be a string \(400\)"):
        driver(Client()).request("PATCH", "/1.0/instances/box", body={"config": {"user.a": 1}})


def test_yaml_holds_what_json_leaves_bare() -> None:
    assert cli_texts.as_yaml({"a": "\x7f\u2028\x85ä\U0001f600"}) == '{"a": "\\u007f\\u2028\\u0085ä😀"}\n'.encode()
    with pytest.raises(_errors.InvalidInput):
        cli_texts.as_yaml({"a": "\ud800"})


def test_an_environment_is_one_line_of_shell() -> None:
    assert cli_exec.variables({}) == b":\n"
    assert cli_exec.variables({"A": "it's\na"}).count(b"\n") == 1
    with pytest.raises(_errors.InvalidInput, match="environment"):
        cli_exec.variables({"A B": "x"})


class Stuck(Client):
    """Ends no edit before its deadline, ``times`` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def run(self, argv: t.Sequence[str], *arguments: t.Any, timeout: float = 0, **more: t.Any) -> Completed:
        done = super().run(argv, *arguments, **more)
        if "edit" in argv and self.times:
            self.times -= 1
            raise _errors.DeadlinePassed(f"{timeout:g}")
        return done


def test_an_edit_whose_end_the_client_misses_is_made_once_more() -> None:
    client = Stuck(1)
    driver(client).request("PATCH", "/1.0/instances/box", body={"config": {"user.a": "3"}})
    edits = [(argv, stdin) for argv, stdin in client.ran if "edit" in argv]
    assert len(edits) == 2
    assert edits[0] == edits[1]
    with pytest.raises(_errors.DeadlinePassed, match="no answer after 600 s"):
        driver(Stuck(2)).request("PATCH", "/1.0/instances/box", body={"config": {"user.a": "3"}})


class Framed(Client):
    """Says what a command in its wrapper does: its output in pieces of so many bytes, if there is somewhere to go."""

    def __init__(self, stdout: str, stderr: str, size: int) -> None:
        super().__init__()
        self.texts, self.size = (stdout, stderr), size

    def run(
        self, argv: t.Sequence[str], stdin: t.Any = b"", output: t.Any = None, *_others: t.Any, **_more: t.Any
    ) -> Completed:
        gate = _others[1]
        sign = next(word for word in argv if word.startswith("mage-"))
        stdout, stderr = (text.replace("SIGN", sign).encode() for text in self.texts)
        if output is not None:
            for start in range(0, len(stdout), self.size):
                output.write(stdout[start : start + self.size])
            stdout = b""
        gate(stdout, stderr)
        return Completed(0, stdout, stderr)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("text", ["", "body", "mage-", "SIG" * 40, "lines\nof it\n"])
def test_output_is_handed_on_without_its_frame(text: str, size: int) -> None:
    said = Framed(f"noise\nSIGN\n{text}SIGN 3\nlate", "SIGN\nwordsSIGN 3\n", size)
    output = io.BytesIO()
    assert driver(said).execute("box", ["true"], output=output) == (3, b"", b"words")
    whole = driver(said).execute("box", ["true"])
    assert (whole.rc, whole.stderr) == (3, b"words")
    assert output.getvalue() == whole.stdout == f"{text}late".encode()


class Lingering(Client):
    """Does not end when the command has; says so many times that it still runs. What it left writes a last word in the
    moment in which it is asked and says no."""

    def __init__(self, running: int) -> None:
        super().__init__()
        self.running = running
        self.mark = ""
        self.asked = 0

    def run(
        self, argv: t.Sequence[str], stdin: t.Any = b"", output: t.Any = None, *_others: t.Any, **_more: t.Any
    ) -> Completed:
        if "query" in argv:
            self.asked += 1
            mark = self.mark if self.asked <= self.running else "another"
            operation = {"metadata": {"environment": {MARK: mark}}}
            return Completed(0, json.dumps({"type": "sync", "metadata": {"running": [operation]}}).encode(), b"")
        _timeout, gate, ended = _others
        sign = next(word for word in argv if word.startswith("mage-"))
        self.mark = next(word for word in argv if word.startswith(MARK)).partition("=")[2]
        stdout, stderr = f"{sign}\nearly\n{sign} 0\n".encode(), f"{sign}\n{sign} 0\n".encode()
        gate(stdout, stderr)
        for _second in range(10):
            if ended(stdout, stderr):
                return Completed(0, stdout, stderr)
            if self.asked > self.running and not stdout.endswith(b"late"):
                stdout += b"late"
        raise AssertionError("waits for ever")


@pytest.mark.parametrize("running", [0, 1, 3])
def test_a_last_word_that_comes_while_the_server_is_asked_is_not_lost(running: int) -> None:
    client = Lingering(running)
    assert driver(client).execute("box", ["true"]) == (0, b"early\nlate", b"")
    assert client.asked == running + 1


def test_what_the_shell_says_of_a_command_that_it_cannot_run_is_left_out() -> None:
    said = Framed("SIGN\nSIGN 126\n", "SIGN\nSIGN: 5: exec: /etc: Permission denied\nSIGN 126\n", 1)
    assert driver(said).execute("box", ["/etc"]) == (126, b"", b"")
    said = Framed("SIGN\nSIGN 126\n", "SIGN\nPermission denied\nSIGN 126\n", 1)
    assert driver(said).execute("box", ["sh"]) == (126, b"", b"Permission denied\n")


def test_an_environment_and_the_clients_own_words() -> None:
    client = Client(Completed(1, b"", b"Error: Instance is not running\n"))
    with pytest.raises(_errors.ServerError, match="Instance is not running"):
        driver(client).execute("box", ["true"], environment={"TOKEN": SECRET, "HOME": "/root"})
    assert SECRET not in str(client.ran[0][0])
    assert "HOME=/root" in client.ran[0][0]
