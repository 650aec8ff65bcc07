# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""The modules' driver: pylxd connects and sends requests; commands and files go the way of the core."""

from __future__ import annotations

import contextlib
import importlib
import sys
import typing as t
import urllib.parse

from .._errors import DeadlinePassed, MissingLibrary, ServerUnreachable
from . import sockets, trust
from .core import CoreDriver
from .driver import Response, checked
from .options import ServerOptions
from .relay import Relay
from .transport import encoded


class RestDriver(CoreDriver):
    """A way to one server by pylxd. See ``driver.Driver``.

    ``server_info`` is what pylxd read of ``/1.0`` when it connected, so that nobody need read it again.
    """

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(options)
        self._session: t.Any = None
        self._relay = None if options.socket_path is not None else Relay(options)
        self._base = "http+unix://" + urllib.parse.quote(options.socket_path or self._relay_path(), safe="")
        try:
            # pylxd does not say why it could not connect.
            sockets.connect(options).close()
            self.transport.greet()
            client = _client(options, self._base)
        except BaseException:
            self.close()
            raise
        self.server_info: dict[str, t.Any] = dict(client.host_info)
        self.requests.append(("GET", "/1.0"))
        self._session = client.api.session
        # Else requests takes proxies, passwords and CAs (REQUESTS_CA_BUNDLE) from the environment.
        self._session.trust_env = False

    def _relay_path(self) -> str:
        return self._relay.path if self._relay else ""

    def request(
        self,
        method: str,
        path: str,
        query: t.Optional[t.Mapping[str, str]] = None,
        body: t.Any = None,
        headers: t.Optional[t.Mapping[str, str]] = None,
        timeout: t.Optional[float] = None,
    ) -> Response:
        """One HTTP request. ``body`` is sent as it is if bytes or a file, else as JSON. ServerError from 400 on."""
        self.requests.append((method, path))
        data, sent = encoded(body, headers)
        limit = timeout or self.options.request_timeout
        with self._explained(), _translated(self.options, f"{method} {path}", limit):
            answer = self._session.request(
                method,
                self._base + path,
                params=dict(query or {}),
                data=data,
                headers=sent,
                timeout=(self.options.connect_timeout, limit),
            )
        lowered = {name.lower(): value for name, value in answer.headers.items()}
        with trust.explained(self.options):
            return checked(Response(answer.status_code, lowered, answer.content), f"{method} {path}")

    @contextlib.contextmanager
    def _explained(self) -> t.Iterator[None]:
        """Who speaks through the relay only sees the line drop."""
        try:
            yield
        except ServerUnreachable as e:
            raise (self._relay and self._relay.cause) or e from e.__cause__

    def close(self) -> None:
        """Let go of every connection."""
        if self._session is not None:
            self._session.close()
        if self._relay is not None:
            self._relay.close()
        super().close()


def _client(options: ServerOptions, url: str) -> t.Any:
    """Connect by pylxd, which reads ``/1.0`` once."""
    try:
        pylxd = importlib.import_module("pylxd")
        exceptions = importlib.import_module("pylxd.exceptions")
    except ImportError as e:
        raise MissingLibrary("pylxd", sys.executable) from e
    with _translated(options, "GET /1.0", options.request_timeout):
        try:
            return pylxd.Client(endpoint=url, timeout=(options.connect_timeout, options.request_timeout))
        except (exceptions.ClientConnectionFailed, exceptions.LXDAPIException) as e:
            raise ServerUnreachable(options.shown, str(e) or "pylxd could not connect") from e


@contextlib.contextmanager
def _translated(options: ServerOptions, request: str, limit: float) -> t.Iterator[None]:
    """Turn what requests raises into the collection's exceptions."""
    failures = importlib.import_module("requests.exceptions")
    try:
        yield
    except failures.ConnectTimeout as e:
        raise ServerUnreachable(options.shown, "no answer in time") from e
    except failures.Timeout as e:
        raise DeadlinePassed(f"{request}: no answer after {limit:g} s") from e
    except failures.SSLError as e:
        raise ServerUnreachable(options.shown, f"its certificate is not trusted: {_root(e)}") from e
    except failures.ConnectionError as e:
        raise ServerUnreachable(options.shown, sockets.cause(_root(e), options.socket_path)) from e
    except (failures.RequestException, OSError) as e:
        raise ServerUnreachable(options.shown, sockets.cause(e, options.socket_path)) from e


def _root(error: BaseException) -> Exception:
    """The first thing that went wrong, under all that requests and urllib3 wrap around it."""
    seen: BaseException = error
    while True:
        inner = [arg for arg in seen.args if isinstance(arg, Exception)] + [getattr(seen, "reason", None)]
        deeper = seen.__cause__ or seen.__context__ or next((one for one in inner if isinstance(one, Exception)), None)
        if deeper is None or deeper is seen:
            return seen if isinstance(seen, Exception) else Exception(str(seen))
        seen = deeper
