# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What stands in a token that makes a server trust its bearer."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import json
import re
import typing as t

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")
_RULE = "must be a token as lxc config trust add and incus config trust add show it"


@dataclasses.dataclass(frozen=True)
class Token:
    """What stands in a token, beside its secret."""

    fingerprint: str
    expires: t.Optional[dt.datetime] = None
    kind: str = ""

    @property
    def late(self) -> bool:
        """Whether it has expired, by this machine's clock."""
        return self.expires is not None and self.expires <= dt.datetime.now(dt.timezone.utc)


def read_token(text: str) -> Token:
    """What a token says. Raises ValueError with a rule that does not show the token."""
    try:
        said = json.loads(base64.b64decode("".join(text.split()), validate=True))
        fingerprint = str(said["fingerprint"]).lower()
        if not said["secret"] or not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
            raise ValueError
    except (binascii.Error, ValueError, TypeError, KeyError):
        raise ValueError(_RULE) from None
    return Token(fingerprint, _time(str(said.get("expires_at") or "")), str(said.get("type") or ""))


def _time(text: str) -> t.Optional[dt.datetime]:
    """A point in time as Go writes it; its year 1 means never."""
    match = _TIME.fullmatch(text)
    if not match or text.startswith("0001-"):
        return None
    return dt.datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00"))
