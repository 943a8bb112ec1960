"""The order of imports, and the rooms of the house that torch never enters."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import recollect

ROOT = Path(recollect.__file__).parent

# What stands on the left may not import what stands on its right; rooms of one line do not import each other.
ORDER = [
    {"errors", "_files"},
    {"graph"},
    {"cells"},
    {"engine"},
    {"nn"},
    {"model_file"},
    {"training", "stream", "datasets"},
    {"diagnosis"},
    {"estimators", "benchmark"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}

# Importing these never imports torch, whatever they import in turn.
WITHOUT_TORCH = [
    "recollect",
    "recollect.errors",
    "recollect._files",
    "recollect.graph.ops",
    "recollect.graph.graph",
    "recollect.graph.derivatives",
    "recollect.graph.gates",
    "recollect.graph.latex",
    "recollect.graph.mathml",
    "recollect.graph.drawing",
    "recollect.graph.declaration",
    "recollect.engine",
    "recollect.engine.plan",
    "recollect.engine.waves",
    "recollect.engine.llvm.kernels",
    "recollect.datasets",
    "recollect.model_file",
    "recollect.stream",
]
# These do not import it inside a function either. (`model_file.modules` does: it builds torch's modules; a reader
# that wants the arrays alone uses `model_file.container`. The package's own __init__ loads names lazily.)
MAY_NOT_EVEN_LATER = {
    "recollect.errors",
    "recollect._files",
    "recollect.graph.ops",
    *(f"recollect.graph.ops.{path.stem}" for path in (ROOT / "graph" / "ops").glob("[a-z]*.py")),
    "recollect.graph.graph",
    "recollect.graph.derivatives",
    "recollect.graph.gates",
    "recollect.graph.latex",
    "recollect.graph.mathml",
    "recollect.graph.declaration",
    "recollect.engine.plan",
    "recollect.engine.waves",
    "recollect.model_file.container",
}
# Nor does anything in these rooms.
NEVER = ("recollect.graph.drawing", "recollect.engine.llvm", "recollect.datasets", "recollect.stream")


def module_name(path: Path) -> str:
    parts = ["recollect", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


class Imports(ast.NodeVisitor):
    """The modules that a file imports: when it is loaded, and at any time at all."""

    def __init__(self, module: str) -> None:
        self.when_loaded: set[str] = set()
        self.ever: set[str] = set()
        self.only_for_types: set[str] = set()
        self._deferred = self._typing = False
        self.visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))

    def _add(self, *names: str) -> None:
        if self._typing:
            self.only_for_types.update(names)
        else:
            self.ever.update(names)
            if not self._deferred:
                self.when_loaded.update(names)

    def visit_Import(self, node):
        self._add(*(alias.name for alias in node.names))

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute"
        self._add(node.module)
        self._add(*(name for alias in node.names if (name := f"{node.module}.{alias.name}") in MODULES))

    def visit_FunctionDef(self, node):
        before, self._deferred = self._deferred, True
        self.generic_visit(node)
        self._deferred = before

    visit_Lambda = visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  (ast's names)

    def visit_If(self, node):
        before, self._typing = self._typing, self._typing or "TYPE_CHECKING" in ast.dump(node.test)
        for each in node.body:
            self.visit(each)
        self._typing = before
        for each in node.orelse:
            self.visit(each)


@cache
def imports(module: str) -> Imports:
    return Imports(module)


def packages_of(module: str) -> list[str]:
    """Importing a.b.c runs a and a.b first."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def path_to_torch(module: str) -> list[str] | None:
    """How loading a module comes to load torch, if it does."""
    queue: list[list[str]] = [[module]]
    seen = set()
    while queue:
        path = queue.pop(0)
        for name in (*packages_of(path[-1]), *imports(path[-1]).when_loaded):
            if name.partition(".")[0] == "torch":
                return [*path, name]
            if name in MODULES and name not in seen:
                seen.add(name)
                queue.append([*path, name])
    return None


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_order(module):
    if module == "recollect":
        return  # its names are loaded when they are asked for, from anywhere
    found = imports(module)
    for name in found.ever | found.only_for_types:
        if name.partition(".")[0] == "recollect" and "." in name:
            assert room(name) in RANK, f"{name} has no place in the order"
            lower = RANK[room(name)] < RANK[room(module)]
            assert lower or room(name) == room(module), f"{module} may not import {name}"


def test_every_room_has_its_place():
    assert {room(module) for module in MODULES} - {""} <= RANK.keys()


def test_no_cycles_between_files():
    done: set[str] = set()

    def visit(module, path):
        assert module not in path, f"cycle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for name in imports(module).when_loaded & MODULES.keys() - {module, *packages_of(module)}:
                visit(name, [*path, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


def test_the_search_for_torch_finds_it():
    for module in ("recollect.graph.trace", "recollect.cells"):
        first, *_, last = path_to_torch(module)
        assert (first, last.partition(".")[0]) == (module, "torch")


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_loading_needs_no_torch(module):
    assert path_to_torch(module) is None


@pytest.mark.parametrize(
    "module",
    sorted(m for m in MODULES if m in MAY_NOT_EVEN_LATER or m.startswith(NEVER)),
)
def test_no_torch_in_any_function_either(module):
    assert "torch" not in {name.partition(".")[0] for name in imports(module).ever | imports(module).only_for_types}
    assert all(path_to_torch(name) is None for name in imports(module).ever & MODULES.keys())


def run(code: str) -> str:
    """Run code in a fresh interpreter where importing torch fails."""
    blocked = "import sys; sys.modules['torch'] = None\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", blocked + code],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_is_not_missed_where_it_is_blocked(tmp_path):
    code = f"""
import numpy as np
{"; ".join(f"import {module}" for module in WITHOUT_TORCH)}
from recollect.engine.plan import make_plan
from recollect.graph.graph import Graph
from recollect.graph.latex import equations
from recollect.model_file import read_model, write_model

graph = Graph.from_json({recollect.cells.lstm.graph.to_json()!r})
make_plan(graph, ("i", "f", "g", "o"), ("h", "c"), ())
write_model({str(tmp_path / "m")!r}, {{"kind": "module", "graph": graph.to_json()}}, {{"w": np.ones(3)}})
header, tensors = read_model({str(tmp_path / "m")!r})
print(len(equations(Graph.from_json(header["graph"]))), tensors["w"].sum())
print(recollect.datasets.load("sunspots").values.size > 100)
"""
    assert run(code).split() == ["6", "3.0", "True"]


def test_import_recollect_loads_neither_torch_nor_numpy():
    assert run("import recollect; print(sorted({'numpy', 'llvmlite', 'recollect.cells'} & set(sys.modules)))") == "[]\n"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_of_more_than_400_lines_is_two_rooms(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 400
