# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers' own listeners for https://, on a port of the loopback, and the certificates that they trust."""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import server

Run = t.Callable[..., str]


@contextlib.contextmanager
def listening(run: Run) -> t.Iterator[str]:
    """The endpoint of a server's listener, which setup.yml has made. ``run`` runs its client."""
    address = run("config", "get", "core.https_address").strip()
    assert address, "the server does not listen for https://: tests/integration/setup.yml sees to that"
    _forget_orphans(run)
    try:
        yield f"https://{address}"
    finally:
        _forget_orphans(run)


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
