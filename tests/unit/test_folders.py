# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and folders: what an instance's tar may say, and errors that nothing later hides."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tracemalloc
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import (
    InvalidInput,
    MageError,
    ServerError,
    ServerUnreachable,
)
from ansible_collections.mage.lxd.plugins.module_utils._server import files, folders
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed

Entry = t.Union[bytes, str, tarfile.TarInfo]


class Tar:
    """An instance whose tar writes what it is told to: files by name, what a link leads to, or anything else."""

    def __init__(self, entries: t.Mapping[str, Entry]) -> None:
        self.commands: list[t.Sequence[str]] = []
        self.timeouts: list[t.Optional[float]] = []
        self.taken = b""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, content in entries.items():
                entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo()
                entry.name = name
                if isinstance(content, str):
                    entry.type, entry.linkname = tarfile.SYMTYPE, content
                elif isinstance(content, bytes):
                    entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content if isinstance(content, bytes) else b""))
        self.archive = packed.getvalue()

    def execute(self, _name: str, argv: t.Sequence[str], **more: t.Any) -> Completed:
        self.commands.append(argv)
        self.timeouts.append(more["timeout"])
        while True:
            piece = more["stdin"].read(1 << 17) if more["stdin"] else b""
            if not piece:
                break
            self.taken += piece
        return Completed(0, f"/var/tmp/{argv[-1]}\n".encode(), b"")

    def pull_stream(self, _place: files.Place, output: t.BinaryIO) -> None:
        output.write(self.archive)


FOLDER = folders.Folder("web", "/srv")


def pull(target: Path, entries: t.Mapping[str, Entry], **more: t.Any) -> Tar:
    tar = Tar({"./" + name: content for name, content in entries.items()})
    folders.pull(t.cast(t.Any, tar), FOLDER, str(target), **more)
    return tar


def special(kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo()
    entry.type, entry.linkname = kind, linkname
    return entry


def test_what_was_copied_is_copied_again(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        pull(tmp_path, {"file": content, "same": special(tarfile.LNKTYPE, "./file"), "link": "file"})
        assert (tmp_path / "link").read_bytes() == (tmp_path / "same").read_bytes() == content


def test_what_stands_in_the_way_is_replaced_or_told(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("mine")
    pull(tmp_path, {"name": "elsewhere"})
    assert os.readlink(tmp_path / "name") == "elsewhere"
    (tmp_path / "folder").mkdir()
    for content in (b"", "link"):
        with pytest.raises(InvalidInput, match="folder: a folder stands where something else is to be"):
            pull(tmp_path, {"folder": content})
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="file: something else stands where a folder is to be"):
        pull(tmp_path, {"file": special(tarfile.DIRTYPE)})


def test_a_link_of_an_earlier_copy_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    target = tmp_path / "target"
    target.mkdir()
    pull(target, {"file": str(mine)})
    pull(target, {"file": b"theirs"})
    assert (mine.read_text(), (target / "file").read_bytes()) == ("mine", b"theirs")
    # A second name that somebody gave a file is no way to the first.
    os.link(mine, target / "other")
    pull(target, {"other": b"theirs"})
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("content", [b"theirs", "/etc/hostname", special(tarfile.DIRTYPE)])
def test_nothing_lands_behind_a_link(tmp_path: Path, content: Entry) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    links = {} if isinstance(content, bytes) else {"folder": str(outside)}
    if not links:
        pull(target, {"folder": str(outside)})
    if isinstance(content, tarfile.TarInfo):
        # A folder takes the place of a link that stands there.
        pull(target, links)
        pull(target, {"folder": content, "folder/file": b"theirs"})
        assert (target / "folder/file").read_bytes() == b"theirs"
    else:
        with pytest.raises(InvalidInput, match="would land behind the link"):
            pull(target, {**links, "folder/file": content})
    assert list(outside.iterdir()) == []


ESCAPES: dict[str, dict[str, Entry]] = {
    "up": {"../file": b"theirs"},
    "down and up": {"a/../../file": b"theirs"},
    "absolute": {"/tmp/mage-file": b"theirs"},
    "a link up": {"../link": "/etc/hostname"},
    "a link at the top": {".": "/etc"},
    "a folder up": {"../folder": special(tarfile.DIRTYPE)},
    "one file with one outside": {"file": special(tarfile.LNKTYPE, "../mine")},
    "one file with an absolute one": {"file": special(tarfile.LNKTYPE, "/etc/hostname")},
    "one file with what a link leads to": {"link": "/etc/hostname", "file": special(tarfile.LNKTYPE, "./link")},
}


@pytest.mark.parametrize("way", ESCAPES)
def test_nothing_lands_outside(way: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    target = tmp_path / "target"
    target.mkdir()
    tar = Tar(ESCAPES[way])
    with pytest.raises(InvalidInput, match=r"web: .* (would land outside of .*|is one file with .*, outside)$"):
        folders.pull(t.cast(t.Any, tar), FOLDER, str(target))
    assert list(target.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "target"]
    assert tar.commands[-1][:2] == ["rm", "-f"]


def test_devices_and_pipes_are_left_out(tmp_path: Path) -> None:
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    pull(tmp_path, {**{f"{number}": special(kind) for number, kind in enumerate(kinds)}, "file": b""})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("archive", [b"", b"nonsense" * 200, Tar({"file": b"x" * 4096}).archive[:2000]])
def test_what_is_no_archive_is_told(archive: bytes, tmp_path: Path) -> None:
    tar = Tar({})
    tar.archive = archive
    with pytest.raises(MageError, match=r"^web: what its tar made of /srv cannot be read: "):
        folders.pull(t.cast(t.Any, tar), FOLDER, str(tmp_path))


def test_what_this_machine_refuses_is_told() -> None:
    with pytest.raises(MageError, match=r"^web:/srv: cannot write /proc/.*: "):
        pull(Path("/proc/nope"), {"file": b""})
    with pytest.raises(InvalidInput, match="there is no folder /proc/nope"):
        folders.push(t.cast(t.Any, Tar({})), FOLDER, "/proc/nope")
    with pytest.raises(InvalidInput, match="must be the absolute path of a folder"):
        folders.Folder("web", "srv")


def test_every_command_has_a_deadline(tmp_path: Path) -> None:
    assert pull(tmp_path, {}).timeouts == [files.TIMEOUT, files.TIMEOUT]
    assert pull(tmp_path, {}, timeout=5).timeouts == [5, 5]
    tar = Tar({})
    folders.push(t.cast(t.Any, tar), FOLDER, str(tmp_path), timeout=5)
    assert tar.timeouts == [5]


def test_what_is_pushed_is_an_archive_of_files_folders_and_links(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "ümläut\n").write_bytes(bytes(700))
    (tmp_path / "folder" / ("long" * 50)).touch(0o640)
    (tmp_path / "link").symlink_to("/etc/hostname")
    os.link(tmp_path / "folder" / "ümläut\n", tmp_path / "same")
    os.mkfifo(tmp_path / "pipe")
    tar = Tar({})
    folders.push(t.cast(t.Any, tar), FOLDER, str(tmp_path))
    with tarfile.open(fileobj=io.BytesIO(tar.taken)) as archive:
        found = {entry.name: (entry.type, entry.size, entry.uid, entry.linkname) for entry in archive}
    assert found == {
        "./folder": (tarfile.DIRTYPE, 0, 0, ""),
        "./folder/ümläut\n": (tarfile.REGTYPE, 700, 0, ""),
        "./folder/" + "long" * 50: (tarfile.REGTYPE, 0, 0, ""),
        "./link": (tarfile.SYMTYPE, 0, 0, "/etc/hostname"),
        "./same": (tarfile.LNKTYPE, 0, 0, "./folder/ümläut\n"),
    }


def test_large_files_are_not_held_in_memory(tmp_path: Path) -> None:
    size = 64 << 20
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "file").open("wb") as file:
        file.truncate(size)

    class Large(Tar):
        """It keeps nothing, and hands out the archive that it was handed in."""

        def execute(self, _name: str, argv: t.Sequence[str], **more: t.Any) -> Completed:
            if more["stdin"]:
                with (tmp_path / "archive").open("wb") as archive:
                    shutil.copyfileobj(more["stdin"], archive)
            return Completed(0, f"/tmp/{argv[-1]}\n".encode(), b"")

        def pull_stream(self, _place: files.Place, output: t.BinaryIO) -> None:
            with (tmp_path / "archive").open("rb") as archive:
                shutil.copyfileobj(archive, output)

    tracemalloc.start()
    folders.push(t.cast(t.Any, Large({})), FOLDER, str(tmp_path / "source"))
    folders.pull(t.cast(t.Any, Large({})), FOLDER, str(tmp_path / "target"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "target" / "file").stat().st_size == size
    assert most < 4 << 20


def test_the_first_error_of_a_file_is_the_one_that_is_told() -> None:
    def write(_place: files.Place, request: str) -> None:
        raise ServerError(400, "no space left on device", request)

    def forget(_place: files.Place) -> None:
        raise ServerUnreachable("unix:///s", "the connection was lost")

    def execute(_argv: t.Sequence[str]) -> Completed:
        return Completed(0, b"", b"")

    with pytest.raises(ServerError, match="no space left on device"):
        files.deliver(files.Place("web", "/srv/file"), io.BytesIO(), 0, execute, write, forget)
