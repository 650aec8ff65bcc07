# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The single entry for checks: ``scripts/setup --dev``, then ``.venv/bin/nox``, or ``nox -s lint unit``.

Sessions use the checkout's own .venv, so nothing is installed twice.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = {
    "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".tree"),
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
}

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "docs", "sanity", "unit", "cores", "aside", "integration", "molecule"]
nox.options.error_on_missing_interpreters = True


def run(session: nox.Session, *command: str) -> None:
    """Run a tool of .venv, with this checkout as the collection."""
    # nox itself looks along the caller's PATH, where .venv need not be.
    program = shutil.which(command[0], path=ENVIRONMENT["PATH"]) or command[0]
    session.run(program, *command[1:], env=ENVIRONMENT, external=True)


def found(pattern: str) -> list[str]:
    """The files of this checkout that match."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def run_all(session: nox.Session, commands: list[list[str]]) -> None:
    """Run every command, and fail at the end if any failed: one run names all that is wrong."""
    failed = []
    for command in commands:
        try:
            run(session, *command)
        except nox.command.CommandFailed:
            failed.append(" ".join(command[:4]))
    if failed:
        session.error(f"failed: {'; '.join(failed)}")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, mypy, yamllint, ansible-lint, shellcheck."""
    scripts = [".ci/run", *found("scripts/*")]
    run_all(
        session,
        [
            ["ruff", "check", "--output-format", "concise"],
            ["ruff", "format", "--check"],
            ["mypy"],
            *(["mypy", path] for path in found("roles/*/files/*.py")),
            ["yamllint", "--strict", "."],
            ["ansible-lint", "--offline", "--profile", "production", "--strict"],
            ["shellcheck", "-x", *scripts],
        ],
    )


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation of plugins and roles, and the changelog."""
    run_all(
        session,
        [
            ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "--validate-collection-refs=self", "."],
            ["antsibull-changelog", "lint"],
        ],
    )


@nox.session
def sanity(session: nox.Session) -> None:
    """Run ansible-test sanity, on a copy where ansible-test wants it."""
    run(session, "scripts/sanity", *session.posargs)


@nox.session
def unit(session: nox.Session) -> None:
    """Pure code: no root."""
    run(session, "pytest", "tests/unit", *session.posargs)


@nox.session
def cores(session: nox.Session) -> None:
    """Every ansible-core that is promised, each in an environment under .cache: needs Incus, and nothing of LXD."""
    run(session, "pytest", "tests/cores", *session.posargs)


@nox.session
def aside(session: nox.Session) -> None:
    """What is done on real servers, and publishes nothing: scripts/test starts them, and runs this beside the rest."""
    run(session, "pytest", "tests/integration", "-m", "aside", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """Every property test with 10,000 cases, drawn anew in each run: hours. Not among the default sessions."""
    tests = [path for path in found("tests/unit/test_*.py") if "@given" in (ROOT / path).read_text(encoding="utf-8")]
    environment = {**ENVIRONMENT, "HYPOTHESIS_PROFILE": "nightly"}
    session.run("pytest", "-m", "hypothesis", *tests, *session.posargs, env=environment, external=True)


@nox.session
def integration(session: nox.Session) -> None:
    """What is done on real servers, and published: the firewall, the proxy, the roles, the demo."""
    run(session, "pytest", "tests/integration", "-m", "not aside", *session.posargs)


@nox.session
def molecule(session: nox.Session) -> None:
    """One scenario a role, on the real server."""
    scenarios = session.posargs or [Path(path).parent.name for path in found("molecule/*/molecule.yml")]
    run_all(session, [["molecule", "test", "-s", name, "--no-command-borders"] for name in scenarios])
