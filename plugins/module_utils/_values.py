# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Names, ports, addresses, hostnames: parsed once, with the path of the field in every error.

Every parser takes the raw value, the path of its field (``instances[2].nat[0].extport``) and the list of problems.
It returns the typed value, or adds a problem and returns None.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import typing as t

from ._errors import InvalidInput

Address = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

# The server's rule for instance names is that of a hostname label, RFC 1123, without a leading digit.
_INSTANCE_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_HALF = re.compile("[\ud800-\udfff]")
_PLAIN_KEY = re.compile(r"[\w.:/ -]{1,80}")
# IFNAMSIZ is 16 with its end mark; "+" would be a wildcard to iptables.
_INTERFACE = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,14}", re.ASCII)
_URL_PATH = re.compile(r"/[A-Za-z0-9._~!&()*+,=:@/-]*", re.ASCII)

NAME_RULE = "1 to 63 letters, digits and hyphens, starting with a letter, not ending in a hyphen, such as web-1"
PORT_RULE = "must be 1 to 65535, such as 8080"
ADDRESS_RULE = "must be an IPv4 or IPv6 address, such as 192.0.2.10"
# More entries than that are a mistake, or an attempt to keep everybody busy.
MOST_ENTRIES = 1000
RANGE_RULE = "must be a port or a range of ports from 1 to 65535, such as 8080 or 8000-8010"


class Problems:
    """What is wrong with an input, collected so that a user sees all of it at once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, path: str, value: object, rule: str) -> None:
        """Note that the field at ``path`` holds ``value`` and breaks ``rule``."""
        self.add_text(f"{path}: {show(value)}: {rule}")

    def add_text(self, text: str) -> None:
        """Note a problem that is not one of a single field."""
        self._texts.append(text)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every problem, in the order in which they were found."""
        return tuple(self._texts)

    def first(self, count: int = 5) -> tuple[str, ...]:
        """The first problems, and how many others there are: enough of what somebody else wrote."""
        left = len(self._texts) - count
        more = (f"and {left} more problem{'s' if left > 1 else ''}",) if left > 0 else ()
        return (*self._texts[:count], *more)

    def raise_if_any(self) -> None:
        """Raise InvalidInput with everything that was noted."""
        if self._texts:
            raise InvalidInput(self._texts)


class PortRange(t.NamedTuple):
    """First and last port, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def size(self) -> int:
        """How many ports."""
        return self.last - self.first + 1

    def overlaps(self, other: PortRange) -> bool:
        """Whether both have a port in common."""
        return self.first <= other.last and other.first <= self.last


def show(value: object) -> str:
    """A value as it stands in an error: quoted if it is text, on one line, not longer than 80 characters."""
    text = json.dumps(value) if isinstance(value, (str, list, dict, bool)) or value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def canonical_json(value: object) -> str:
    """The one way to write a value: sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def nearest(word: str, known: t.Iterable[str]) -> str:
    """A hint at the known word that was probably meant: `` (did you mean name?)``, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def mapping(raw: object, path: str, known: t.Collection[str], problems: Problems) -> dict[str, t.Any] | None:
    """A mapping without unknown keys. Unknown ones are problems, with the nearest known key."""
    if not isinstance(raw, dict):
        problems.add(path, raw, "must be a mapping with the keys " + ", ".join(sorted(known)))
        return None
    for key in raw:
        if key not in known:
            hint = nearest(str(key), known) or "; known are " + ", ".join(sorted(known))
            shown = key if isinstance(key, str) and _PLAIN_KEY.fullmatch(key) else show(key)
            problems.add_text(f"{path}.{shown}: unknown key{hint}")
    return {key: value for key, value in raw.items() if key in known and value is not None}


def refuse_halves(raw: object, path: str, problems: Problems) -> None:
    """Refuse text that UTF-8 cannot hold, wherever it is: half of a character, which JSON takes along. It is not shown:
    it may be a secret."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            if _is_whole(key):
                refuse_halves(value, f"{path}.{key}", problems)
            else:
                problems.add_text(f"{path}: a key of it must be text that UTF-8 can hold")
    elif isinstance(raw, (list, tuple)):
        for index, value in enumerate(raw):
            refuse_halves(value, f"{path}[{index}]", problems)
    elif not _is_whole(raw):
        problems.add_text(f"{path}: must be text that UTF-8 can hold")


def _is_whole(raw: object) -> bool:
    return not isinstance(raw, str) or raw.isascii() or not _HALF.search(raw)


def sequence(raw: object, path: str, problems: Problems, example: str = "") -> list[t.Any]:
    """A list of at most 1000 entries; None is the empty one. ``example`` is how one is written."""
    if raw is None:
        return []
    if not isinstance(raw, (list, tuple)):
        problems.add(path, raw, "must be a list" + (f", such as {example}" if example else ""))
        return []
    if len(raw) > MOST_ENTRIES:
        problems.add_text(f"{path}: {len(raw)} entries: must be at most {MOST_ENTRIES}")
        return []
    return list(raw)


def words(raw: object, path: str, problems: Problems, example: str) -> list[str]:
    """A list of texts of one line."""
    found = (
        text(one, f"{path}[{index}]", problems) for index, one in enumerate(sequence(raw, path, problems, example))
    )
    return [one for one in found if one is not None]


def choice(raw: object, path: str, known: t.Collection[str], problems: Problems) -> str | None:
    """One of the known words."""
    if isinstance(raw, str) and raw in known:
        return raw
    problems.add(path, raw, "must be one of " + ", ".join(known))
    return None


def boolean(raw: object, path: str, problems: Problems) -> bool | None:
    """True or false, in YAML's or in Ansible's words."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    value = words.get(str(raw).lower())
    if value is None:
        problems.add(path, raw, "must be true or false")
    return value


def text(raw: object, path: str, problems: Problems, limit: int = 4096) -> str | None:
    """Text of one line."""
    if not isinstance(raw, str) or len(raw) > limit or any(ord(char) < 32 or ord(char) == 127 for char in raw):
        problems.add(path, raw, f"must be text of one line, at most {limit} characters")
        return None
    return raw


def instance_name(raw: object, path: str, problems: Problems) -> str | None:
    """A name that LXD and Incus take for an instance."""
    if isinstance(raw, str) and _INSTANCE_NAME.fullmatch(raw):
        return raw
    problems.add(path, raw, NAME_RULE)
    return None


def integer(raw: object, path: str, problems: Problems, least: int, most: int) -> int | None:
    """A whole number between two others, both allowed, as a number or as text."""
    value = _integer(raw)
    if value is None or not least <= value <= most:
        problems.add(path, raw, f"must be a whole number, {least} to {most}")
        return None
    return value


def port(raw: object, path: str, problems: Problems) -> int | None:
    """A port, as a number or as text."""
    value = _integer(raw)
    if value is None or not 1 <= value <= 65535:
        problems.add(path, raw, PORT_RULE)
        return None
    return value


def port_range(raw: object, path: str, problems: Problems) -> PortRange | None:
    """A port (8080) or a range of ports (8000-8010)."""
    first, dash, last = str(raw).partition("-")
    numbers = (_integer(first), _integer(last) if dash else _integer(first))
    if isinstance(raw, bool) or numbers[0] is None or numbers[1] is None:
        problems.add(path, raw, RANGE_RULE)
        return None
    if not 1 <= numbers[0] <= numbers[1] <= 65535:
        problems.add(path, raw, RANGE_RULE)
        return None
    return PortRange(numbers[0], numbers[1])


def _integer(raw: object) -> int | None:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,9}", raw, re.ASCII):
        return int(raw)
    return None


def address(raw: object, path: str, problems: Problems, rule: str = ADDRESS_RULE) -> Address | None:
    """An IPv4 or IPv6 address without a mask. ``rule`` is told of what is no address at all."""
    try:
        # A zone (fe80::1%eth0) means nothing outside of the machine that has it.
        return ipaddress.ip_address(raw if isinstance(raw, str) and "%" not in raw else "")
    except ValueError:
        problems.add(path, raw, rule)
        return None


def interface(raw: object, path: str, problems: Problems) -> str | None:
    """The name of a network interface of the host."""
    if isinstance(raw, str) and _INTERFACE.fullmatch(raw) and raw not in (".", ".."):
        return raw
    problems.add(path, raw, "must be the name of a network interface, such as enp3s0")
    return None


def hostname(raw: object, path: str, problems: Problems, wildcard: bool = False) -> str | None:
    """A hostname in lower case (RFC 1123, and underscores); with ``wildcard``, ``*.example.org`` too."""
    value = raw.lower() if isinstance(raw, str) and raw.isascii() else ""
    bare = value[2:] if wildcard and value.startswith("*.") else value
    if 0 < len(value) <= 253 and all(_LABEL.fullmatch(label) for label in bare.split(".")):
        return value
    problems.add(path, raw, "must be a hostname, such as shop.example.org")
    return None


def url_path(raw: object, path: str, problems: Problems) -> str | None:
    """The path of a route: begins with a slash, and holds nothing that means something to nginx."""
    if isinstance(raw, str) and len(raw) <= 1024 and _URL_PATH.fullmatch(raw):
        return raw
    problems.add(
        path, raw, "must be a path that starts with / and has no blanks or any of ; { } \" ' \\ $ #, such as /"
    )
    return None
