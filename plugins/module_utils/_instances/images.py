# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What an instance is made from: an image on the server, on another server or in a file, or a copy. Pure."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._values import Problems, boolean, canonical_json, choice, instance_name, mapping, nearest, text

ARCHITECTURES = ("amd64", "arm64", "armhf", "armel", "i386", "i686", "ppc64el", "riscv64", "s390x", "x86_64", "aarch64")
PROTOCOLS = ("simplestreams", "lxd", "incus")
NATIVE = PROTOCOLS[1:]
MODES = ("pull", "local")
# One of them says which image is meant.
WHICH = ("alias", "fingerprint", "properties", "file")
KEYS = (*WHICH, "server", "protocol", "mode", "secret", "auto_update", "certificate")
_FINGERPRINT = re.compile(r"[0-9a-f]{4,64}")


@dataclasses.dataclass(frozen=True)
class Image:
    """One image: ``alias``, ``fingerprint`` (the beginning of one will do), ``properties`` or ``file`` says which.

    With a file, ``fingerprint`` is what its SHA-256 has to be. ``alias`` may be a fingerprint, too, where the user gave
    but text. With a ``server`` the image is fetched from there; else it is on the server that makes the instance.
    ``auto_update`` is None where nothing was said.
    """

    alias: str = ""
    fingerprint: str = ""
    properties: tuple[tuple[str, str], ...] = ()
    file: str = ""
    server: str = ""
    protocol: str = ""
    mode: str = "pull"
    secret: str = dataclasses.field(default="", repr=False)
    certificate: str = ""
    auto_update: t.Optional[bool] = None

    def __str__(self) -> str:
        which = self.alias or self.file or self.fingerprint
        which = which or ", ".join(f"{key}={value}" for key, value in self.properties)
        return f"{which} from {self.server}" if self.server else which


@dataclasses.dataclass(frozen=True)
class CopyOf:
    """Another instance of the same project, or one of its snapshots."""

    name: str
    snapshot: str = ""

    def __str__(self) -> str:
        return f"{self.name}/{self.snapshot}" if self.snapshot else self.name


def parse(raw: object, path: str, problems: Problems) -> t.Optional[Image]:
    """An image: the text of an alias or fingerprint, or a mapping."""
    if isinstance(raw, str):
        alias = text(raw, path, problems)
        if alias == "":
            problems.add(path, raw, "must be an alias or a fingerprint, such as debian/bookworm")
        return Image(alias=alias) if alias else None
    if not isinstance(raw, dict):
        # Nobody knows what stands there: it may be a secret.
        shown = "(hidden)" if isinstance(raw, (list, tuple)) and raw else raw
        problems.add(path, shown, "must be an alias, a fingerprint, or a mapping with " + _or(WHICH))
        return None
    before = len(problems)
    fields = mapping(raw, path, KEYS, problems) or {}
    image = _of(fields, path, problems)
    which = [key for key in WHICH if fields.get(key)]
    if image.file and image.fingerprint:
        which.remove("fingerprint")
        if len(image.fingerprint) != 64:
            told = "must be the whole SHA-256 of the file, 64 hexadecimal digits"
            problems.add(f"{path}.fingerprint", image.fingerprint, told)
    if len(which) != 1 and len(problems) == before:
        told = f"has {' and '.join(which)}: one of them says which image" if which else f"needs {_or(WHICH)}"
        problems.add_text(f"{path}: {told}")
    _check_server(image, fields, path, problems)
    return image if len(problems) == before else None


def _of(fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> Image:
    words = {
        key: _words(fields[key], f"{path}.{key}", problems)
        for key in ("alias", "file", "server", "secret", "certificate")
        if key in fields
    }
    return Image(
        **words,
        fingerprint=_fingerprint(fields.get("fingerprint"), f"{path}.fingerprint", problems),
        properties=_properties(fields.get("properties"), f"{path}.properties", problems),
        protocol=_choice(fields, "protocol", path, PROTOCOLS, problems),
        mode=_choice(fields, "mode", path, MODES, problems) or "pull",
        auto_update=boolean(fields["auto_update"], f"{path}.auto_update", problems)
        if "auto_update" in fields
        else None,
    )


def _check_server(image: Image, fields: t.Mapping[str, t.Any], path: str, problems: Problems) -> None:
    if not image.server:
        for key in ("protocol", "secret", "certificate", "auto_update"):
            if fields.get(key) is not None:
                problems.add_text(f"{path}.{key}: is of no use without server, the one to fetch the image from")
        return
    if not re.fullmatch(r"https://[^/\s]+(/\S*)?", image.server):
        problems.add(f"{path}.server", image.server, "must be https://, such as https://images.example.org")
    if image.secret and (image.alias or image.protocol not in NATIVE):
        # With a secret, servers take an alias for a fingerprint.
        told = f"is for an image that is told by its fingerprint, with protocol {_or(NATIVE)}"
        problems.add_text(f"{path}.secret: {told}")
    if image.file:
        problems.add_text(f"{path}.file: is imported from the host itself: server is of no use with it")
    if image.properties:
        problems.add_text(f"{path}.properties: match images on the server itself only: say alias or fingerprint")


def _words(raw: object, path: str, problems: Problems) -> str:
    """Text; a certificate has many lines. Values are not told: one of them is a secret."""
    lines = path.endswith(".certificate")
    if isinstance(raw, str) and raw and len(raw) <= 1 << 16 and (lines or raw.isprintable()):
        return raw
    problems.add(path, "(hidden)" if path.endswith(".secret") else raw, "must be text of one line")
    return ""


def _fingerprint(raw: object, path: str, problems: Problems) -> str:
    # YAML takes a short fingerprint of digits alone for a number.
    value = str(raw).lower() if isinstance(raw, (str, int)) and not isinstance(raw, bool) else ""
    if raw is None or _FINGERPRINT.fullmatch(value):
        return value
    problems.add(path, raw, "must be the fingerprint of an image, or at least its first 4 hexadecimal digits")
    return ""


def _properties(raw: object, path: str, problems: Problems) -> tuple[tuple[str, str], ...]:
    if raw is None:
        return ()
    plain = isinstance(raw, dict) and all(isinstance(value, (str, int, float)) for value in raw.values())
    if isinstance(raw, dict) and raw and plain:
        return tuple(sorted((str(key), str(value)) for key, value in raw.items()))
    problems.add(path, raw, "must be a mapping of an image's properties, such as {os: Debian, release: bookworm}")
    return ()


def _choice(fields: t.Mapping[str, t.Any], key: str, path: str, known: t.Sequence[str], problems: Problems) -> str:
    return choice(fields[key], f"{path}.{key}", known, problems) or "" if key in fields else ""


def _or(words: t.Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1]


def _and(words: t.Iterable[str]) -> str:
    *most, last = words
    return ", ".join(most) + " and " + last


def parse_copy(raw: object, path: str, problems: Problems) -> t.Optional[CopyOf]:
    """``other`` or ``other/snapshot``."""
    name, slash, snapshot = str(raw).partition("/")
    if not isinstance(raw, str) or (slash and not re.fullmatch(r"[^/\s]+", snapshot)):
        problems.add(path, raw, "must be an instance or its snapshot, such as web-1 or web-1/before-upgrade")
        return None
    known = instance_name(name.replace("_", "-"), path, problems)
    return CopyOf(known, snapshot) if known else None


def source(image: Image, known: t.Mapping[str, str]) -> t.Optional[dict[str, t.Any]]:
    """The source of a new instance, or None where the server has no such image. ``known`` maps the aliases, the
    fingerprints and the asked-for properties on the server to fingerprints: an alias may be there with or without its
    architecture, a fingerprint is as long as it is."""
    if image.server and image.mode == "pull":
        return _remote(image)
    if image.properties:
        found = known.get(property_key(image.properties))
        return {"type": "image", "fingerprint": found} if found else None
    if image.file:
        return {"type": "image", "fingerprint": image.fingerprint} if image.fingerprint else None
    aliases = _aliases(image, known)
    if len(aliases) == 1:
        return {"type": "image", "alias": aliases[0]}
    matches = _beginning(image, known)
    return {"type": "image", "fingerprint": matches[0]} if len(matches) == 1 and not aliases else None


def _aliases(image: Image, known: t.Collection[str]) -> list[str]:
    """The aliases on the server that an image may mean; more than one: it does not say which architecture."""
    if image.alias in known:
        return [image.alias]
    base, slash, last = image.alias.rpartition("/")
    if slash and last in ARCHITECTURES:
        return [base] if base in known else []
    return [alias for alias in (f"{image.alias}/{one}" for one in ARCHITECTURES) if image.alias and alias in known]


def _beginning(image: Image, known: t.Iterable[str]) -> list[str]:
    """The fingerprints on the server that begin as an image says."""
    start = image.fingerprint or (image.alias if len(image.alias) >= 12 else "")
    return [one for one in known if start and len(one) == 64 and one.startswith(start)]


def why_not(image: Image, known: t.Mapping[str, str]) -> str:
    """Why the server has no image to make an instance of."""
    matches = sorted(_beginning(image, known))
    if len(matches) > 1:
        return f"the fingerprints of {len(matches)} images on the server begin so: {_and(one[:16] for one in matches)}"
    if image.properties:
        return "no image on the server has these properties"
    if image.fingerprint:
        return "no image on the server has this fingerprint"
    aliases = _aliases(image, known)
    if len(aliases) > 1:
        return f"say which one, {_or(aliases)}"
    there = sorted(one for one in known if len(one) != 64 and not one.startswith("{"))
    hint = nearest(image.alias, there) or ("; there are " + ", ".join(there) if there else "; there are none")
    kind = "alias or fingerprint" if re.fullmatch(r"[0-9a-f]{12,64}", image.alias) else "alias"
    return f"no image on the server has this {kind}{hint}"


def property_key(properties: t.Iterable[tuple[str, str]]) -> str:
    """What properties are looked up by among aliases and fingerprints."""
    return canonical_json(dict(properties))


def matching(properties: t.Iterable[tuple[str, str]], there: t.Iterable[t.Mapping[str, t.Any]]) -> str:
    """The fingerprint of the newest of a server's images that has these properties, which is the one that a server
    takes; nothing where none has."""
    wanted = dict(properties).items()
    fitting = [one for one in there if wanted <= (one.get("properties") or {}).items()]
    return str(max(fitting, key=lambda one: str(one.get("created_at") or ""))["fingerprint"]) if fitting else ""


def _remote(image: Image) -> dict[str, t.Any]:
    which = {"alias": image.alias} if image.alias else {"fingerprint": image.fingerprint}
    optional = {"secret": image.secret, "certificate": image.certificate}
    return {
        "type": "image",
        "mode": "pull",
        "server": image.server,
        "protocol": image.protocol or "simplestreams",
        **which,
        **{key: value for key, value in optional.items() if value},
    }
