"""Versions: what is pinned is what is claimed, and another torch is run in an environment of its own."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from recollect.engine.llvm.machine import compile_module, host
from recollect.errors import BackendError

REPOSITORY = Path(__file__).parents[1]
CONSTRAINTS = (REPOSITORY / "constraints.txt").read_text()

# Makes an environment whose pip only writes down what it was asked for.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
printf '#!/bin/sh\\necho "$@" >> "%s/asked"\\n' "$3" > "$3/bin/pip"
chmod +x "$3/bin/pip"
"""


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def claimed(package: str) -> tuple[int, ...]:
    """The oldest version that pyproject.toml claims; no newer one may be shut out."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    [requirement] = [text for text in project["dependencies"] if re.match(rf"{package}\b", text)]
    oldest = re.fullmatch(rf"{package}>=([\d.]+)", requirement)
    assert oldest, f"{requirement} shuts out versions that nobody has seen fail"
    return number(oldest[1])


@pytest.mark.parametrize("package", ["torch", "llvmlite"])
def test_what_is_pinned_is_no_older_than_what_is_claimed(package):
    [pinned] = re.findall(rf"^{package}==([\d.]+)$", CONSTRAINTS, re.MULTILINE)
    assert number(pinned) >= claimed(package)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("torch", ["", "2.9.1"])
def test_another_torch_has_an_environment_of_its_own(torch, tmp_path):
    """With the pinned versions of all else."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "TORCH")}
    command = ["make", "venv", f"PYTHON={tmp_path / 'python'}", *([f"TORCH={torch}"] if torch else [])]
    subprocess.run(command, cwd=tmp_path, env=plain, check=True, capture_output=True)
    [environment] = tmp_path.glob(".venv*")
    assert environment.name == (f".venv-torch-{torch}" if torch else ".venv")
    constraints = (environment / "constraints.txt").read_text()
    assert constraints == (re.sub(r"(?m)^torch==.*$", f"torch=={torch}", CONSTRAINTS) if torch else CONSTRAINTS)
    for asked in (environment / "asked").read_text().splitlines():
        assert f"-c {environment.name}/constraints.txt" in asked


def test_what_a_compiler_follows_asks_for_types_in_a_tuple():
    """The compiler of torch 2.9 does not know a union of types in ``isinstance``."""
    for path in (REPOSITORY / "src/recollect/nn").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "isinstance":
                assert not isinstance(call.args[1], ast.BinOp), f"{path.name}:{call.lineno}"


def test_an_llvm_that_reads_other_text_is_named():
    with pytest.raises(BackendError, match=r"llvmlite [\d.]+ \(LLVM [\d.]+\)") as caught:
        compile_module("define void @f() { no such instruction }", host())
    oldest = ".".join(map(str, claimed("llvmlite")))
    assert f"llvmlite>={oldest}" in str(caught.value.remedy)
