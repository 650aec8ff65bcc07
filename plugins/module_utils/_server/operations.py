# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Operations: what the server does in the background, waited for with a deadline."""

from __future__ import annotations

import typing as t

from .._errors import DeadlinePassed, NotFound, OperationForgotten, ServerError
from .driver import Driver, Response, api, error_for
from .options import OPERATION_TIMEOUT


def run(
    driver: Driver,
    method: str,
    path: str,
    query: t.Optional[t.Mapping[str, str]] = None,
    body: t.Any = None,
    headers: t.Optional[t.Mapping[str, str]] = None,
    timeout: float = OPERATION_TIMEOUT,
    strict: bool = False,
) -> t.Any:
    """Send a request and wait for the operation that it starts, if it starts one.

    Returns the metadata of the operation or of the answer. Returns None where the server has forgotten the operation:
    the caller reads the object again, since that says neither success nor failure. With ``strict`` that is an
    OperationForgotten.
    """
    answer = driver.request(method, path, query=query, body=body, headers=headers)
    return wait(driver, answer, f"{method} {path}", timeout, strict)


def wait(
    driver: Driver, response: Response, request: str, timeout: float = OPERATION_TIMEOUT, strict: bool = False
) -> t.Any:
    """Wait for the operation of an answer. Raises ServerError if it failed, DeadlinePassed if it is late."""
    envelope = response.json
    if envelope.get("type") != "async":
        return envelope.get("metadata")
    identifier = str(envelope.get("operation", "")).partition("?")[0].rpartition("/")[2]
    try:
        answer = driver.request(
            "GET",
            api("operations", identifier, "wait"),
            query={"timeout": str(int(timeout))},
            timeout=timeout + 10,
        )
    except NotFound as e:
        if strict:
            raise OperationForgotten(request) from e
        return None
    except ServerError as e:
        # Incus: what failed is what was asked for, not the wait.
        raise ServerError(e.status, e.message, request) from e
    operation = answer.metadata or {}
    code = int(operation.get("status_code", 0))
    if code < 200:
        state = f"{operation.get('description', 'operation')}: {operation.get('status', 'unknown')}"
        raise DeadlinePassed(f"{request}: not done after {int(timeout)} s; last state: {state}")
    if code >= 400:
        raise error_for(code, str(operation.get("err") or operation.get("status")), request)
    return operation.get("metadata")
