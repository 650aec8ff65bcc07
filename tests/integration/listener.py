# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers' own listeners for https://, on a port of the loopback, and the certificates that they trust."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import server

Run = t.Callable[..., str]
ADDRESS = "core.https_address"


@contextlib.contextmanager
def listening(run: Run) -> t.Iterator[str]:
    """The endpoint of a server that listens until the end. ``run`` runs its client.

    A server that listens already is left as it is.
    """
    found = run("config", "get", ADDRESS).strip()
    address = found or f"127.0.0.1:{_free_port()}"
    if not found:
        run("config", "set", ADDRESS, address)
    try:
        yield f"https://{address}"
    finally:
        _forget_orphans(run)
        if not found:
            run("config", "unset", ADDRESS)


def make_token(run: Run, *arguments: str) -> str:
    """A token to be trusted by, for a certificate whose name says which process made it."""
    name = server.own_prefix()
    named = ["--name", name] if json.loads(run("query", "/1.0"))["environment"]["server"] == "lxd" else [name]
    return run("config", "trust", "add", *named, *arguments).split()[-1]


def forget(run: Run, certificate: str) -> None:
    """Trust the certificate in this file no more."""
    run("config", "trust", "remove", fingerprint(certificate))


def fingerprint(certificate: str) -> str:
    der = ssl.PEM_cert_to_DER_cert(Path(certificate).read_text(encoding="ascii"))
    return hashlib.sha256(der).hexdigest()


def _forget_orphans(run: Run) -> None:
    """Runs that were interrupted leave certificates."""
    for found in json.loads(run("query", "/1.0/certificates?recursion=1")):
        if server.is_orphan(found["name"]):
            run("config", "trust", "remove", found["fingerprint"])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
