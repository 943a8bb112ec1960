"""The reference made from the docstrings has every public name, and the docstrings are fit for it."""

from __future__ import annotations

import builtins
import html
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import recollect

REFERENCE = Path(__file__).parents[1] / "docs" / "reference.py"
MODULES = ("recollect", *(f"recollect.{name}" for name in ("nn", "cells", "training", "datasets", "diagnosis")))


def public():
    """(module, name, object) of every public name that is no module; `errors` and `nn.init` have no ``__all__``."""
    for module in MODULES:
        found = importlib.import_module(module)
        yield from ((module, name, getattr(found, name)) for name in found.__all__)
    for module in (recollect.errors, recollect.nn.init):
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
                yield module.__name__, name, value


NAMES = [(module, name, value) for module, name, value in public() if not inspect.ismodule(value)]
CALLABLE = [(module, name, value) for module, name, value in NAMES if callable(value)]


def members():
    """(name, object) of what has a docstring: the callables, and the public methods and properties of our classes."""
    for module, name, value in CALLABLE:
        yield f"{module}.{name}", value
        for base in value.__mro__ if inspect.isclass(value) else ():
            for method, each in vars(base).items() if base.__module__.startswith("recollect") else ():
                if not method.startswith("_") and (inspect.isroutine(each) or isinstance(each, property)):
                    yield f"{module}.{name}.{method}", getattr(value, method)


MEMBERS = list(dict(members()).items())


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Module -> the text of its page."""
    spec = importlib.util.spec_from_file_location("reference", REFERENCE)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    folder = tmp_path_factory.mktemp("docs")
    assert reference.main(folder).exists()
    return {name: (folder / f"{name.replace('.', '/')}.html").read_text("utf-8") for name in reference.MODULES}


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())


def first_words(docstring: str) -> str:
    """The beginning of a docstring, up to the first mark that is written otherwise on a page."""
    return re.split(r"[`:*\n]", inspect.cleandoc(docstring))[0].strip()


@pytest.mark.parametrize(("module", "name", "value"), NAMES, ids=[f"{module}.{name}" for module, name, _ in NAMES])
def test_every_public_name_is_in_the_reference(module, name, value, pages):
    section = re.search(rf'<section id="{name}">(.*?)</section>', pages[module], re.DOTALL)
    assert section, f"{module}.{name} has no section"
    shown = words(section[1])
    if callable(value):
        assert first_words(value.__doc__) in shown
    if inspect.isfunction(value) or (inspect.isclass(value) and "__init__" in vars(value)):
        for parameter in list(inspect.signature(value).parameters)[:3]:
            assert parameter in shown


@pytest.mark.parametrize("module", MODULES)
def test_every_page_is_reached(module, pages):
    if module != "recollect" and module.rpartition(".")[2] in recollect.__all__:
        assert f'href="recollect/{module.rpartition(".")[2]}.html"' in pages["recollect"]


def test_pages_need_no_network_and_hold_no_latex(pages):
    for page in pages.values():
        assert not re.search(r"""(src|<link[^>]*href)=["']?(https?:)?//""", page)
        assert not re.search(r"\.\. math|:math:|\\\(|\\sigma|<mi>&</mi>|<mtext>\\", page)
    assert pages["recollect.cells"].count("<math") >= len(recollect.cells.__all__)


@pytest.mark.parametrize(("name", "value"), MEMBERS, ids=[name for name, _ in MEMBERS])
def test_what_is_public_has_a_docstring(name, value):
    assert inspect.getdoc(value), name


@pytest.mark.parametrize(("name", "value"), MEMBERS, ids=[name for name, _ in MEMBERS])
def test_references_in_docstrings(name, value):
    """``code`` in two backticks; `a name` of ours in one, or with a role that pdoc knows; each name is there."""
    text = re.sub(r":math:`[^`]*`|``[^`]*``", "", value.__doc__ or "")
    assert set(re.findall(r":(\w+):`", text)) <= {"class", "func", "meth", "mod"}
    assert text.count("`") % 2 == 0
    module = inspect.getmodule(value.fget if isinstance(value, property) else value)
    places = [module, recollect, recollect.nn, recollect.cells, recollect.errors, recollect.training, builtins]
    places += [owner for _, path, owner in CALLABLE if path == name.rsplit(".", 2)[-2]]
    for reference in re.findall(r"`([^`]*)`", text):
        assert any(leads(place, reference) for place in places), f"{name} refers to `{reference}`"


def leads(place, path: str) -> bool:
    for each in path.removeprefix("recollect.").split("."):
        if not hasattr(place, each):
            return False
        place = getattr(place, each)
    return True
