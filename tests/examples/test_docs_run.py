"""The pages of docs/ do what they say: every block of code runs, and every error quoted is the one that is raised."""

from __future__ import annotations

import doctest
import functools
import json
import linecache
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"
PAGES = sorted(DOCS.glob("*.md"))

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch",  # of torch's compiler and exporter
)  # fmt: skip


class Block(NamedTuple):
    """A fenced block: its kind ("python", "python raises", "pycon", "text", ...), its first line and its lines."""

    kind: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(r"^```(.*)\n((?:.*\n)*?)^```$", text, re.MULTILINE)
    return [Block(each[1], text.count("\n", 0, each.start(2)), each[2]) for each in fences]


def run(page: Path, block: Block, variables: dict[str, Any], *, numbered_alone: bool = False) -> None:
    """Run a block; a line that fails is shown with its number in the page, or in the block alone."""
    name = f"<{page.name}, block at line {block.line}>"
    source = block.text if numbered_alone else "\n" * block.line + block.text
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), variables)


def check_session(page: Path, block: Block, variables: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, variables, page.name, page.name, block.line)
    test.globs = variables  # what a session defines is there afterwards
    found: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=flags).run(test, out=found.append, clear_globs=False)
    assert not found, "".join(found)


def matches(message: str, quoted: str) -> bool:
    """Whether a message is what a page quotes, which may be wrapped and has "..." for what it leaves out."""
    pattern = ".*".join(re.escape(part) for part in " ".join(quoted.split()).split("..."))
    return re.fullmatch(pattern, " ".join(message.split())) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page, monkeypatch, tmp_path):
    """In one namespace and in order; torch.compile traces but does not generate C++, which takes half a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small sizes: more threads only wait for each other on a machine that does other work too
    variables: dict[str, Any] = {"__name__": "__main__"}
    found = blocks(page)
    for place, block in enumerate(found):
        if block.kind == "python":
            run(page, block, variables)
        elif block.kind == "pycon":
            check_session(page, block, variables)
        elif block.kind == "python raises":
            quoted = found[place + 1]
            assert quoted.kind == "text"
            with pytest.raises(Exception) as caught:  # noqa: PT011  (which one is what the page says)
                run(page, block, variables, numbered_alone=True)
            raised = f"{type(caught.value).__name__}: {caught.value}"
            assert matches(raised, quoted.text), f"{page.name}, line {block.line}: raised\n{raised}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Links within the pages: to a heading as GitHub names it, or to a file."""
    text = re.sub(r"^```(.*)\n((?:.*\n)*?)^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    definitions = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.MULTILINE))
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    links = [*re.findall(r"\]\(([^)]+)\)", text), *definitions.values()]
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings
        elif not link.startswith("http"):
            assert (DOCS / link.partition("#")[0]).exists(), link
    used = set(re.findall(r"\[([^\]]+)\](?![\]:(])", re.sub(r"`[^`]*`", "", text)))
    assert set(definitions) <= used


def test_a_wrong_quotation_is_found():
    assert matches("a; given: b, c; remedy: d", "a;\n  given: ...; remedy: d")
    assert not matches("a; given: b; remedy: e", "a; given: ...; remedy: d")


# Torch takes long to import, so one interpreter does it, and each block runs in a copy of that one.
IN_PROCESSES_OF_THEIR_OWN = """
import json, os, sys, traceback
import torch

assert not any(name.partition(".")[0] == "recollect" for name in sys.modules)
failures = []
for name, source in json.load(sys.stdin):
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            exec(compile(source, name, "exec"), {"__name__": "__main__"})
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4000:])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as said:
        failures.append(said.read())
    _, status = os.wait()
    failures[-1] += f"ended with status {status}" if status else ""
json.dump(failures, sys.stdout)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies of an interpreter are made by fork")
def test_each_block_of_the_readme_runs_on_its_own(tmp_path):
    """Somebody copies one of them, not those above it too."""
    sources = [
        (f"<README.md, block at line {block.line}>", "\n" * block.line + block.text)
        for block in blocks(README)
        if block.kind == "python"
    ]
    assert len(sources) >= 4
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_PROCESSES_OF_THEIR_OWN],
        input=json.dumps(sources), capture_output=True, encoding="utf-8", cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [""] * len(sources)
