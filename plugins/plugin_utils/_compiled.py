# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Has Python's own cache of compiled code (``__pycache__``) serve this collection's utilities.

Ansible's loader of collections compiles each file anew at each import, and a connection plugin is imported for every
task on every host. ``install()`` serves what is imported after it. Where nothing can be written beside the code, all is
as before.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
import typing as t

_COLLECTION = __name__.rpartition(".plugin_utils.")[0]
_ANSIBLES = "_AnsibleCollectionFinder"
_OURS = (f"{_COLLECTION}.module_utils.", f"{_COLLECTION}.plugin_utils.")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the utilities' files, and nothing else, as Python finds any module."""

    def find_spec(
        self, fullname: str, path: t.Optional[t.Sequence[str]], target: t.Any = None
    ) -> t.Optional[importlib.machinery.ModuleSpec]:
        """See importlib.abc.MetaPathFinder."""
        if not fullname.startswith(_OURS):
            return None
        found = (_folder(folder).find_spec(fullname) for folder in path or ())
        return next(filter(None, found), None)


@functools.cache
def _folder(path: str) -> importlib.machinery.FileFinder:
    details = (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES)
    return importlib.machinery.FileFinder(path, details)


def install() -> None:
    """Come right before Ansible's finder. Where it is not, Python finds the files itself."""
    names = [type(finder).__name__ for finder in sys.meta_path]
    if _Finder.__name__ not in names and _ANSIBLES in names:
        sys.meta_path.insert(names.index(_ANSIBLES), _Finder())
