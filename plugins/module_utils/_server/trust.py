# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Whether a server at https:// trusts us: found out once, and brought about by a token where there is one."""

from __future__ import annotations

import contextlib
import typing as t

from .._errors import ServerError, ServerUnreachable
from .driver import Response, api
from .options import ServerOptions

# Newer LXD and Incus take a token as what it is. LXD up to 5.0 takes it for a password.
_EXPLICIT = "explicit_trust_token"
# Incus says of some refusals that they were errors of its own.
_REFUSED = "User does not have permission"

Ask = t.Callable[[str, str, t.Any], Response]


def ensure(options: ServerOptions, ask: Ask) -> None:
    """Have the server trust us. ``ask`` sends a request. Raises ServerUnreachable with what is to be done."""
    info = _server(ask)
    if info.get("auth") == "trusted":
        return
    if not options.trust_token:
        raise ServerUnreachable(options.shown, _advice(options, info))
    refusal = _use(options.trust_token, info, ask)
    # Another process may have been faster with the same token and certificate.
    if _server(ask).get("auth") != "trusted":
        raise ServerUnreachable(options.shown, refusal or "it took the trust_token, and does not trust us all the same")


def _server(ask: Ask) -> dict[str, t.Any]:
    return ask("GET", api(), None).metadata or {}


def _use(text: str, info: t.Mapping[str, t.Any], ask: Ask) -> str:
    """Show the token to the server. Returns why it was refused, if it was."""
    from .tokens import read_token

    token, text = read_token(text), "".join(text.split())
    try:
        if token.kind:
            ask("POST", api("auth", "identities", "tls"), {"trust_token": text})
        elif _EXPLICIT in (info.get("api_extensions") or ()):
            ask("POST", api("certificates"), {"type": "client", "trust_token": text})
        else:
            # Some do not say before they trust us what they know; each leaves alone what it does not know.
            ask("POST", api("certificates"), {"type": "client", "trust_token": text, "password": text})
    except ServerError as e:
        if token.late and token.expires is not None:
            return f"the trust_token has expired ({token.expires:%Y-%m-%d %H:%M} UTC): make another one"
        return f"it refused the trust_token ({e.message}), which is good for one use only: make another one"
    return ""


def _advice(options: ServerOptions, info: t.Mapping[str, t.Any]) -> str:
    methods = info.get("auth_methods") or ["tls"]
    if "tls" not in methods:
        return f"it wants a login by {' or '.join(methods)}, which needs a browser, and takes no client certificates"
    return (
        f"it does not trust the certificate {options.client_cert}: have `lxc config trust add` or "
        "`incus config trust add` there make a trust_token, or take this certificate"
    )


@contextlib.contextmanager
def explained(options: ServerOptions) -> t.Iterator[None]:
    """Say of a refusal what it comes from: who is trusted and still may not do a thing has a restricted certificate."""
    try:
        yield
    except ServerError as e:
        refused = e.status == 403 or _REFUSED in e.message
        if not refused or not options.endpoint.startswith("https://") or options.via:
            raise
        why = f"{e.message} (the certificate {options.client_cert} is restricted on this server)"
        raise type(e)(e.status, why, e.request) from e
