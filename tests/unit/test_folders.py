# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and folders: what an instance's tar may say, and errors that nothing later hides."""

from __future__ import annotations

import io
import tarfile
import typing as t
from pathlib import Path

import pytest

from ansible_collections.mage.lxd.plugins.module_utils._errors import InvalidInput, ServerError, ServerUnreachable
from ansible_collections.mage.lxd.plugins.module_utils._server import files, folders, sftp, transfer
from ansible_collections.mage.lxd.plugins.module_utils._server.driver import Completed


class Tar:
    """An instance whose tar writes what it is told to: files by name, or what a link leads to."""

    def __init__(self, **entries: t.Union[bytes, str]) -> None:
        self.entries = entries

    def execute(self, *_args: t.Any, **_more: t.Any) -> Completed:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in self.entries.items():
                entry = tarfile.TarInfo("./" + name.replace("_in_", "/"))
                if isinstance(content, str):
                    entry.type, entry.linkname = tarfile.SYMTYPE, content
                else:
                    entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content if isinstance(content, bytes) else b""))
        return Completed(0, archive.getvalue(), b"")


def pull(target: Path, **entries: t.Union[bytes, str]) -> None:
    folders.pull(t.cast(t.Any, Tar(**entries)), "web", "/srv", str(target))


def test_what_was_copied_is_copied_again(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        pull(tmp_path, file=content, link="file")
        assert (tmp_path / "link").read_bytes() == content


def test_a_link_of_an_earlier_copy_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    target = tmp_path / "target"
    target.mkdir()
    pull(target, file=str(mine))
    pull(target, file=b"theirs")
    assert (mine.read_text(), (target / "file").read_bytes()) == ("mine", b"theirs")


@pytest.mark.parametrize("content", [b"theirs", "/etc/hostname"])
def test_nothing_lands_behind_a_link(tmp_path: Path, content: t.Union[bytes, str]) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    if isinstance(content, bytes):
        pull(target, folder=str(outside))
    with pytest.raises(InvalidInput, match="would land behind the link"):
        pull(target, **({} if isinstance(content, bytes) else {"folder": str(outside)}), folder_in_file=content)
    assert list(outside.iterdir()) == []


def test_the_first_error_of_a_file_is_the_one_that_is_told() -> None:
    def write(_place: files.Place, request: str) -> None:
        raise ServerError(400, "no space left on device", request)

    def forget(_place: files.Place) -> None:
        raise ServerUnreachable("unix:///s", "the connection was lost")

    def execute(_argv: t.Sequence[str]) -> Completed:
        return Completed(0, b"", b"")

    with pytest.raises(ServerError, match="no space left on device"):
        files.deliver(files.Place("web", "/srv/file"), io.BytesIO(), 0, execute, write, forget)


def test_a_rename_that_is_refused_says_why() -> None:
    class Session:
        def rename(self, _source: str, _target: str) -> None:
            raise sftp.Refused(0, "no space left on device")

        def open(self, _path: str, _flags: int) -> bytes:
            raise sftp.Refused(2, "No such file or directory")

        def attributes(self, _handle: bytes) -> t.Any:
            raise AssertionError

    with pytest.raises(sftp.Refused, match="no space left on device"):
        transfer._rename(t.cast(t.Any, Session()), "/srv/.mage-1", files.Place("web", "/srv/file"))
