# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the imports of plugins/ and names what breaks the layering: modules → _run → wings → ground floor."""

from __future__ import annotations

import ast
import dataclasses
import typing as t
from pathlib import Path

PACKAGE = "ansible_collections.mage.lxd.plugins"
UTILS = f"{PACKAGE}.module_utils"
WINGS = ("_instances", "_nat", "_proxy")
DOORS = ("apply", "iptables", "nginx", "reading", "waiting", "worker")
PURE = ("causes", "order", "plan", "prune", "readiness", "render", "restart", "spec", "states", "update")
# Ground files that plans are made of: as pure as the plans.
PURE_GROUND = ("_errors", "_keys", "_plan", "_values")
LAYERS = {0: "the ground floor", 1: "a wing", 2: "_run", 3: "a plugin"}
IMPURE = (
    "ansible.module_utils.basic",
    "ansible.module_utils.urls",
    "asyncio",
    "http",
    "multiprocessing",
    "os",
    "pylxd",
    "random",
    "requests",
    "secrets",
    "shutil",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib.request",
    "uuid",
)
CLOCK = ("now", "utcnow", "today")
MAIN_LINES = 15
MODULE_TEXTS = ("DOCUMENTATION", "EXAMPLES", "RETURN")


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@dataclasses.dataclass(frozen=True)
class File:
    """A Python file of plugins/. name is its dotted name below ansible_collections.mage.lxd.plugins."""

    name: str
    is_package: bool
    tree: ast.Module

    @property
    def util(self) -> list[str]:
        """Its place in module_utils, ["_nat", "plan"]; empty outside."""
        parts = self.name.split(".")
        return parts[1:] if parts[0] == "module_utils" else []

    @property
    def wing(self) -> str:
        return self.util[0] if self.util and self.util[0] in WINGS else ""

    @property
    def layer(self) -> int:
        if not self.util:
            return 3
        return 1 if self.wing else 2 if self.util[0] == "_run" else 0

    @property
    def must_be_pure(self) -> bool:
        """By its name. So must be what such a file imports of its own wing."""
        in_wing = bool(self.wing) and len(self.util) > 1 and self.util[1] in PURE
        return in_wing or (len(self.util) == 1 and self.util[0] in PURE_GROUND)

    @property
    def is_door(self) -> bool:
        return bool(self.wing) and len(self.util) > 1 and self.util[1] in DOORS

    def imports(self, loaded_only: bool = False) -> set[str]:
        """Absolute names of what it imports, types aside. loaded_only: what is imported when it is loaded."""
        return {name for node in _import_nodes(self.tree, loaded_only) for name in self._names(node)}

    def _names(self, node: ast.Import | ast.ImportFrom) -> t.Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = node.module or ""
        if node.level:
            package = f"{PACKAGE}.{self.name}".split(".")
            package = package[: len(package) - node.level + (1 if self.is_package else 0)]
            base = ".".join([*package, *([node.module] if node.module else [])])
        # `from ._server import options` may name a module or something in one: both are told.
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _import_nodes(node: ast.AST, loaded_only: bool) -> t.Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif not (loaded_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))):
            yield from _import_nodes(child, loaded_only)


def read(plugins: Path) -> dict[str, File]:
    """Every Python file below plugins/, by its dotted name."""
    files = {}
    for path in sorted(plugins.rglob("*.py")):
        parts = path.relative_to(plugins).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        files[name] = File(name, is_package, ast.parse(path.read_text(encoding="utf-8")))
    return files


def violations(plugins: Path) -> list[str]:
    """Every place below plugins/ that breaks the layering, as ``file: what``."""
    files = read(plugins)
    pure = _pure_names(files)
    found: list[str] = []
    for file in files.values():
        own = _own(file, files)
        problems = [*_downward(file, own), *_doors(file, own), *_outside(file)]
        if file.name in pure:
            problems += [*_pure(file, own, files), *_clock_and_files(file)]
        if file.name.startswith("modules."):
            problems += _wiring(file)
        if file.name.startswith("connection."):
            problems += [f"loads {name}" for name in sorted(_loaded(file, files)) if name in ("pylxd", "requests")]
        found += [f"{file.name}: {problem}" for problem in problems]
    return found


def _pure_names(files: dict[str, File]) -> set[str]:
    queue = [file for file in files.values() if file.must_be_pure]
    pure = {file.name for file in queue}
    while queue:
        found = [other for other in _own(queue.pop(), files) if other.wing and not other.is_door]
        queue += [other for other in found if other.name not in pure]
        pure |= {other.name for other in found}
    return pure


def _own(file: File, files: dict[str, File]) -> list[File]:
    """The files of plugins/ that it imports."""
    return [files[name] for name in sorted(_inner(file.imports(), files) - {file.name})]


def _inner(names: t.Iterable[str], files: dict[str, File]) -> set[str]:
    inner = {name[len(PACKAGE) + 1 :] for name in names if name.startswith(PACKAGE + ".")}
    return {name for name in inner if name in files and name != "module_utils"}


def _downward(file: File, own: list[File]) -> t.Iterator[str]:
    for other in own:
        if other.layer > file.layer:
            yield f"imports {other.name}: {LAYERS[file.layer]} may not import {LAYERS[other.layer]}"
        if not file.util and not other.util and not other.name.startswith(("plugin_utils", "doc_fragments")):
            yield f"imports {other.name}: plugins share code in module_utils or plugin_utils"


def _doors(file: File, own: list[File]) -> t.Iterator[str]:
    for other in own:
        if file.wing and other.is_door and other.wing != file.wing:
            yield f"imports {other.name}: the door of another wing"


def _outside(file: File) -> t.Iterator[str]:
    names = file.imports()
    if file.name != "module_utils._run":
        yield from (f"imports {name}: only _run does" for name in sorted(names) if name.endswith(".AnsibleModule"))
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Attribute) and node.attr in ("fail_json", "exit_json"):
                yield f"uses {node.attr} in line {node.lineno}: only _run does"
    if file.util and file.util[0] != "_server" and any(_within(name, "pylxd") for name in names):
        yield "imports pylxd: only _server does"


def _loaded(file: File, files: dict[str, File]) -> set[str]:
    """The names of what is imported when the file is loaded, however far down; the file itself with all it has."""
    names, seen, queue = set(file.imports()), {file.name}, [file]
    while queue:
        current = queue.pop()
        loaded = current.imports(loaded_only=True)
        names |= loaded
        for name in _inner(loaded, files) - seen:
            seen.add(name)
            queue.append(files[name])
    return names


def _pure(file: File, own: list[File], files: dict[str, File]) -> t.Iterator[str]:
    for other in own:
        if other.is_door:
            yield f"imports {other.name}: a pure file may not import a door"
    for name in sorted(_loaded(file, files) if file.wing else file.imports()):
        if any(_within(name, impure) for impure in IMPURE):
            yield f"{'imports' if name in file.imports() else 'loads'} {name}: it must be pure"


def _clock_and_files(file: File) -> t.Iterator[str]:
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in CLOCK:
            yield f"asks the clock in line {node.lineno}: it must be pure"
        if isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input", "exec", "eval", "__import__"):
            yield f"calls {node.func.id}() in line {node.lineno}: it must be pure"


def _wiring(file: File) -> t.Iterator[str]:
    for node in file.tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            lines = (node.end_lineno or node.lineno) - node.lineno
            if lines > MAIN_LINES:
                yield f"main() has {lines} lines: a module only wires, in at most {MAIN_LINES}"
        elif not isinstance(node, (ast.Import, ast.ImportFrom)) and not _is_text_or_guard(node):
            yield f"line {node.lineno}: {type(node).__name__}: a module holds its texts and main(), no logic"


def _is_text_or_guard(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id in MODULE_TEXTS for target in node.targets)
    if isinstance(node, ast.If):
        return "__name__" in ast.unparse(node.test)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
