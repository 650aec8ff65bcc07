# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: lxd
short_description: Run tasks in LXD and Incus instances over the server's API
version_added: 0.1.0
author:
  - The mage.lxd contributors (@mage)
description:
  - Runs commands in an instance and moves files to and from it, by the API of the server. The instance needs no SSH,
    no network and no agent; a virtual machine needs the server's own agent. The controller needs neither the client
    C(lxc) nor a Python package.
  - An instance is addressed by its name, never by an address.
extends_documentation_fragment:
  - mage.lxd.server
  - mage.lxd.server.variables
notes:
  - A command may leave a process behind which holds its output open. LXD then waits for the end of that process; Incus
    waits a second, and what comes later is lost. Redirect the output of what is to stay.
  - A user other than root, set by O(remote_user), has its own group and no supplementary ones.
options:
  remote_addr:
    description:
      - Name of the instance.
      - The inventory plugin and the role set C(ansible_lxd_instance), since a name in the inventory may have what no
        instance's name has (C(ubu_test_1) for C(ubu-test-1)).
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_lxd_instance
  remote_user:
    description:
      - The user that commands run as, by name or number, as the instance knows it. No C(sudo) is needed for this.
    type: str
    default: root
    keyword:
      - name: remote_user
    ini:
      - section: lxd_connection
        key: remote_user
    vars:
      - name: ansible_user
      - name: ansible_lxd_user
  executable:
    description: The instance's shell.
    type: str
    default: /bin/sh
    ini:
      - section: lxd_connection
        key: executable
    vars:
      - name: ansible_lxd_executable
  command_timeout:
    description:
      - Seconds after which a command is killed in the instance, with all that it started, and the task fails.
      - V(0) means never.
    type: float
    default: 0
    env:
      - name: ANSIBLE_LXD_COMMAND_TIMEOUT
    ini:
      - section: lxd_connection
        key: command_timeout
    vars:
      - name: ansible_lxd_command_timeout
  pipelining:
    description:
      - Sends modules over standard input instead of copying each one into the instance first.
    type: boolean
    default: true
    env:
      - name: ANSIBLE_LXD_PIPELINING
    ini:
      - section: lxd_connection
        key: pipelining
    vars:
      - name: ansible_pipelining
      - name: ansible_lxd_pipelining
"""

EXAMPLES = r"""
# inventory.ini
#
# [web]
# web-1
# web_2  ansible_lxd_instance=web-2
# web-3  ansible_lxd_project=shop  ansible_user=deploy
#
# [web:vars]
# ansible_connection=mage.lxd.lxd

- name: Use what needs no Python in the instance
  hosts: web
  gather_facts: false
  connection: mage.lxd.lxd
  tasks:
    - name: Ask for the kernel
      ansible.builtin.raw: uname -r
      changed_when: false
"""

import contextlib
import os
import shlex
import stat
import time
import typing as t

from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display

from ansible_collections.mage.lxd.plugins.plugin_utils import _compiled

# For all that is imported below.
_compiled.install()

from ansible_collections.mage.lxd.plugins.module_utils import _errors
from ansible_collections.mage.lxd.plugins.module_utils._server import connect, options
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed
from ansible_collections.mage.lxd.plugins.plugin_utils import _accounts, _local

if t.TYPE_CHECKING:
    from ansible_collections.mage.lxd.plugins.module_utils._server.files import Place

display = Display()

# Exit codes of a command that SIGKILL or SIGTERM has ended: by somebody's will, or because the instance goes down.
_KILLED = (137, 143)
_MOMENT = 0.3
# Seconds that become has to ask for a password, and to take it.
_PROMPT = 30.0
_GOING = "the instance is going down"
# What a server says of an instance in which no process can be started any more, or yet.
_NO_PID = "Failed to retrieve PID of executing child process"


class Connection(ConnectionBase):
    """Commands and files of one instance, by the API of its server.

    Its errors are raised without their causes: ansible-core appends those to a message that says them already.
    """

    transport = "mage.lxd.lxd"
    has_pipelining = True
    has_tty = False

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(*args, **kwargs)
        self._driver: t.Optional[connect.Door] = None
        # What the driver was asked for by, and whom it has found in which instance.
        self._reached: dict[str, t.Any] = {}
        self._known: dict[tuple[str, str], _accounts.Account] = {}
        self._taken: t.Any = None
        # Whether the task is a loop, and this its second item or a later one.
        self._looping = False

    def set_options(
        self, task_keys: t.Any = None, var_options: t.Any = None, direct: t.Any = None, **others: t.Any
    ) -> None:
        """Take the options. Ansible asks a shell for the user's home, and shells know users by name only."""
        keywords = self._keywords()
        task = {key: value for key, value in (task_keys or {}).items() if key in keywords}
        given = (task, dict(var_options or {}), direct, others)
        self._looping = self._taken is not None
        # The items of a loop bring the same again, and Ansible takes as long for it as for the rest of an item.
        if given != self._taken:
            super().set_options(task_keys=task, var_options=var_options, direct=direct, **others)
            self._taken = given
            if self._driver is not None and self._where() != self._reached:
                # An item of a loop may be another server's, or another project's.
                self.close()
        if task.get("delegate_to") and "ansible_lxd_instance" not in (var_options or {}):
            # In a delegated task, inventory_hostname is still the host that delegates.
            self.set_option("remote_addr", task["delegate_to"])
        user = str(self.get_option("remote_user"))
        if user.isdigit() and user != "0":
            with contextlib.suppress(AnsibleConnectionFailure):
                # If it fails, so does the first command, which tells why.
                self.set_option("remote_user", self._user().name)

    def _keywords(self) -> set[str]:
        """What of a task's keywords the options come from."""
        definitions = self.option_definitions
        keywords = {str(one["name"]) for definition in definitions.values() for one in definition.get("keyword") or ()}
        # A task's timeout is that of another thing, and Ansible would take it for the server's.
        return (keywords | {*definitions, "delegate_to"}) - {"timeout"}

    def _connect(self) -> Connection:
        """Find out where the server is. Servers that are not in an instance get nothing before the first command."""
        if self._driver is None:
            self._reached = self._where()
            try:
                self._driver = connect.connect_core(self._server())
            except _errors.MageError as e:
                raise AnsibleConnectionFailure(f"{self._label}: {e}") from None
            self._connected = True
        return self

    def _server(self) -> options.ServerOptions:
        """Which server, and how it is reached. Raises InvalidInput."""
        return options.parse(self._where())

    def _where(self) -> dict[str, t.Any]:
        """What the options say of the server."""
        return {name: self.get_option(name) for name in options.NAMES}

    @property
    def _instance(self) -> str:
        return str(self.get_option("remote_addr"))

    @property
    def _label(self) -> str:
        """How messages call the instance: project/name."""
        return f"{self._project}/{self._instance}"

    @property
    def _project(self) -> str:
        """The one that was asked for, or that the endpoint's remote says."""
        return self._driver.options.project if self._driver else str(self.get_option("project") or "default")

    @property
    def _door(self) -> connect.Door:
        self._connect()
        if self._driver is None:
            raise AnsibleConnectionFailure(f"{self._label}: not connected")
        return self._driver

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a shell command. Returns its exit code, stdout and stderr."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        display.vvv(f"EXEC {cmd}", host=self._label)
        become = self.become if sudoable else None
        gate = _Password(become) if become is not None and become.expect_prompt() else None
        done = self._run(self._argv(to_text(cmd)), self._user(), in_data or b"", gate)
        if become is not None and done.rc != 0 and not become.check_success(done.stdout):
            _check_passwords(become, done.stderr)
        stdout = done.stdout if gate is None else _after_prompt(become, done.stdout)
        return done.rc, stdout, done.stderr

    def _argv(self, cmd: str) -> list[str]:
        """The command in a shell, in one shell only where Ansible has put one around it already."""
        words = cmd.split(" -c ", 1)
        if len(words) == 2 and words[0] in ("/bin/sh", self.get_option("executable")):
            try:
                script = shlex.split(words[1])
            except ValueError:
                script = []
            if len(script) == 1 and shlex.quote(script[0]) == words[1]:
                return [words[0], "-c", script[0]]
        return [self.get_option("executable"), "-c", cmd]

    def _run(
        self,
        argv: t.Sequence[str],
        account: _accounts.Account,
        stdin: bytes = b"",
        gate: t.Optional[_Password] = None,
    ) -> Completed:
        other: dict[str, t.Any] = {}
        if account != _accounts.ROOT:
            other = {
                "user": account.uid,
                "group": account.gid,
                "cwd": account.home,
                "environment": _accounts.environment(account),
            }
        door = self._door
        try:
            done = door.execute(
                self._instance,
                argv,
                project=self._project,
                stdin=stdin,
                timeout=self.get_option("command_timeout") or None,
                gate=gate,
                more=self._looping,
                **other,
            )
            if done.rc in _KILLED:
                self._still_there()
            return done
        except _errors.DeadlinePassed as e:
            raise AnsibleError(str(e)) from None
        except _errors.InvalidInput as e:
            # The instance is there, whatever it was asked to run.
            raise AnsibleError(f"{self._label}: {e}") from None
        except _errors.MageError as e:
            raise self._failure(e) from None

    def _still_there(self) -> None:
        """Raise ServerError if the instance goes down: then nobody but its end has killed the command.

        What kills all processes gets a moment to take the instance down.
        """
        time.sleep(_MOMENT)
        if self._door.execute(self._instance, ["true"], project=self._project, cwd="/").rc in _KILLED:
            raise _errors.ServerError(500, _GOING, self._instance)

    def _user(self) -> _accounts.Account:
        """Whom to run as. Looked up in the instance once, unless it is root."""
        user = str(self.get_option("remote_user") or "root")
        if user in ("root", "0"):
            return _accounts.ROOT
        key = (self._instance, user)
        if key not in self._known:
            found = self._run(["/bin/sh", "-c", _accounts.LOOKUP, "sh", user], _accounts.ROOT)
            account = _accounts.find(found.stdout.decode("utf-8", "replace"), user)
            if account is None:
                raise AnsibleConnectionFailure(f"{self._label}: there is no user {user} in the instance")
            self._known[key] = self._known[self._instance, account.name] = account
        return self._known[key]

    def _failure(self, error: _errors.MageError) -> AnsibleError:
        """What the server refused, as one sentence."""
        if isinstance(error, _errors.NotFound):
            hint = " (names of instances have no underscores: ansible_lxd_instance says which one is meant)"
            text = f"there is no such instance on {self._door.endpoint}{hint if '_' in self._instance else ''}"
        elif isinstance(error, _errors.ServerError) and error.message in (_GOING, _NO_PID):
            text = "the instance was going down or coming up, and its commands were ended"
        elif isinstance(error, _errors.ServerError):
            text = error.message[:1].lower() + error.message[1:]
        else:
            text = str(error)
        return AnsibleConnectionFailure(f"{self._label}: {text}")

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file of the controller into the instance, with its mode, as the user's own."""
        super().put_file(in_path, out_path)
        display.vvv(f"PUT {in_path} TO {out_path}", host=self._label)
        account = self._user()
        try:
            with open(to_bytes(in_path, errors="surrogate_or_strict"), "rb") as file:
                status = os.fstat(file.fileno())
                place = self._place(out_path, stat.S_IMODE(status.st_mode) & 0o777, account)
                self._door.push_stream(place, file, status.st_size)
        except FileNotFoundError as e:
            raise AnsibleFileNotFound(f"file or module does not exist: {in_path}") from e
        except OSError as e:
            raise AnsibleError(f"cannot read {in_path}: {e.strerror}") from e
        except _errors.MageError as e:
            raise self._file_failure(e, f"cannot write {out_path}") from None

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file of the instance to the controller: whole, or not at all."""
        super().fetch_file(in_path, out_path)
        display.vvv(f"FETCH {in_path} TO {out_path}", host=self._label)
        target = to_bytes(out_path, errors="surrogate_or_strict")
        try:
            with _local.replacing(target) as file:
                self._door.pull_stream(self._place(in_path, 0, _accounts.ROOT), file)
        except OSError as e:
            raise AnsibleError(f"cannot write {out_path}: {e.strerror}") from e
        except _errors.NotFound as e:
            if e.request.startswith("GET "):
                raise self._failure(e) from None
            raise AnsibleFileNotFound(f"{self._label}: there is no {in_path}") from None
        except _errors.MageError as e:
            raise self._file_failure(e, f"cannot read {in_path}") from None

    def _place(self, path: str, mode: int, account: _accounts.Account) -> Place:
        # A plugin is loaded for every task, and most of them move no file.
        from ansible_collections.mage.lxd.plugins.module_utils._server.files import Place

        absolute = os.path.normpath(os.path.join("/", to_text(path)))
        return Place(self._instance, absolute, self._door.options.project, mode, account.uid, account.gid)

    def _file_failure(self, error: _errors.MageError, what: str) -> AnsibleError:
        """A lost instance is unreachable; a path that cannot be read or written is the task's failure."""
        lost = isinstance(error, _errors.NotFound) and error.request.startswith("GET ")
        if lost or isinstance(error, _errors.ServerUnreachable):
            return self._failure(error)
        text = error.message if isinstance(error, _errors.ServerError) else str(error)
        return AnsibleError(f"{self._label}: {what}: {text}")

    def close(self) -> None:
        """Let go of the server."""
        if self._driver is not None:
            self._driver.close()
        self._driver = None
        self._known = {}
        self._connected = False

    def reset(self) -> None:
        """Start afresh: the next command opens a new connection, by a new login, and asks for the user again."""
        self.close()
        with contextlib.suppress(_errors.MageError):
            # What is wrong with the server is for the next command to tell.
            connect.begin_afresh(self._server())


class _Password:
    """Answers the prompt of become, and lets standard input flow when become has done its part."""

    def __init__(self, become: t.Any) -> None:
        self._become = become
        self._end = time.monotonic() + _PROMPT
        self._answered_at: t.Optional[tuple[int, int]] = None

    def __call__(self, stdout: bytes, stderr: bytes) -> tuple[bool, bytes]:
        """See exec.Gate."""
        become = self._become
        if become.check_success(stdout):
            return True, b""
        start = self._answered_at or (0, 0)
        fresh = (stdout[start[0] :], stderr[start[1] :])
        for output in fresh:
            _check_passwords(become, output)
        if any(become.check_password_prompt(output) for output in fresh):
            if self._answered_at:
                raise AnsibleAuthenticationFailure(f"Incorrect {become.name} password")
            self._answered_at = (len(stdout), len(stderr))
            self._end = time.monotonic() + _PROMPT
            return False, to_bytes(become.get_option("become_pass") or "") + b"\n"
        if time.monotonic() > self._end:
            done = "it took the password and did nothing" if self._answered_at else "it asked for no password"
            raise AnsibleError(f"{become.name}: after {_PROMPT:g} s, {done}")
        return False, b""


def _after_prompt(become: t.Any, stdout: bytes) -> bytes:
    """Output without the prompt and the answer to it, which some programs write to standard output."""
    _before, success, after = stdout.partition(to_bytes(become.success))
    return after.partition(b"\n")[2] if success else stdout


def _check_passwords(become: t.Any, output: bytes) -> None:
    """Raise if become says in the output, before the command itself began, that the password is wrong or missing."""
    if become.check_incorrect_password(output):
        raise AnsibleAuthenticationFailure(f"Incorrect {become.name} password")
    if become.check_missing_password(output):
        raise AnsibleAuthenticationFailure(f"Missing {become.name} password")
