# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Whole files and whole folders, by the streams and commands of whatever driver."""

from __future__ import annotations

import io
import typing as t

if t.TYPE_CHECKING:
    from . import files


class WholeFiles:
    """What every driver offers on top of its streams. Imported where used: a connection plugin is loaded for every
    task."""

    if t.TYPE_CHECKING:

        def push_stream(self, place: files.Place, data: t.BinaryIO, size: int) -> None:
            """Write ``size`` bytes of an open file to a file in an instance."""

        def pull_stream(self, place: files.Place, output: t.BinaryIO) -> None:
            """Write a file's content to an open file. Raises NotFound."""

    def push(
        self,
        instance: str,
        path: str,
        data: bytes,
        project: str = "default",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
    ) -> None:
        """Write a file in an instance."""
        from . import files

        self.push_stream(files.Place(instance, path, project, mode, uid, gid), io.BytesIO(data), len(data))

    def pull(self, instance: str, path: str, project: str = "default") -> bytes:
        """Read a file of an instance. Raises NotFound."""
        from . import files

        output = io.BytesIO()
        self.pull_stream(files.Place(instance, path, project), output)
        return output.getvalue()

    def push_folder(
        self, instance: str, path: str, source: str, project: str = "default", timeout: t.Optional[float] = None
    ) -> None:
        """Copy what is in a folder here into a folder of a running instance, as root's."""
        from . import folders

        folders.push(t.cast("folders.Door", self), folders.Folder(instance, path, project), source, timeout)

    def pull_folder(
        self, instance: str, path: str, target: str, project: str = "default", timeout: t.Optional[float] = None
    ) -> None:
        """Copy files, folders and links out of a folder of a running instance. Raises InvalidInput for what would land
        outside of the target."""
        from . import folders

        folders.pull(t.cast("folders.Door", self), folders.Folder(instance, path, project), target, timeout)
