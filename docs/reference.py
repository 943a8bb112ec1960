"""The reference of the public names, made from their docstrings: ``make docs`` writes it to ``out/docs``.

pdoc writes the pages and latex2mathml the formulas, here and now: what they write is read without a network.
"""

from __future__ import annotations

import html
import importlib
import inspect
import re
from pathlib import Path
from textwrap import dedent

import latex2mathml.converter
import pdoc.doc
import pdoc.render

import recollect
from recollect.cells import Cell

MODULES = (
    "recollect",
    "recollect.nn",
    "recollect.nn.init",
    "recollect.cells",
    "recollect.training",
    "recollect.stream",
    "recollect.datasets",
    "recollect.diagnosis",
    "recollect.errors",
)

_MATH_BLOCK = re.compile(r"^( *)\.\. math::(.*\n(?:\1 +.*\n|[ \t]*\n(?=\1 ))*)", re.MULTILINE)
_MATH = re.compile(r":math:`([^`]+)`")


def main(folder: Path = Path(__file__).parents[1] / "out" / "docs") -> Path:
    """Write the reference; return the page to begin with."""
    modules = {name: _module(name) for name in MODULES}
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"recollect {recollect.__version__}")
    for name, module in modules.items():
        page = folder / f"{name.replace('.', '/')}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_mended(pdoc.render.html_module(module, modules)), encoding="utf-8")
    (folder / "index.html").write_text(pdoc.render.html_index(modules), encoding="utf-8")
    (folder / "search.js").write_text(pdoc.render.search_index(modules), encoding="utf-8")
    return folder / "index.html"


def prepared(docstring: str) -> str:
    """A docstring as pdoc takes it: formulas as MathML, and a bare "<" as itself rather than as HTML."""
    text = inspect.cleandoc(docstring) + "\n"
    text = re.sub(r"``[^`]*``|`[^`]*`|^ *(?:>>>|\.\.\.) .*|<", lambda found: found[0].replace("<", "&lt;")
                  if found[0] == "<" else found[0], text, flags=re.MULTILINE)  # fmt: skip
    text = _MATH_BLOCK.sub(lambda found: f"{found[1]}{_mathml(dedent(found[2]), 'block')}\n\n", text)
    text = _MATH.sub(lambda found: _mathml(found[1], "inline"), text)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)  # before a block of code, which is indented


def _mended(page: str) -> str:
    """Equations under each other line up at their signs, in browsers that know nothing of MathML's columnalign too."""
    style = "<style>mtd:first-child {text-align: right} mtd:last-child {text-align: left}</style>"
    options = html.escape("*<class 'recollect.nn.recurrent.Options'>")  # how inspect prints Unpack[Options]
    return page.replace("</head>", f"{style}</head>").replace(options, "Unpack[Options]")


def _mathml(latex: str, display: str) -> str:
    latex = " ".join(latex.replace("&lt;", "<").split())
    if "&" in latex:
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    return latex2mathml.converter.convert(latex, display=display)


def _module(name: str) -> pdoc.doc.Module:
    """What pdoc knows of a module, and what it does not: lazy names, cells, what classes have from private bases."""
    found = importlib.import_module(name)
    for each in getattr(found, "__all__", ()):
        getattr(found, each)  # a name of `recollect` is loaded only when it is asked for
    module = pdoc.doc.Module(found)
    if name == "recollect.cells":
        module.members["Cell"] = pdoc.doc.Class(name, "Cell", Cell, (name, "Cell"))
    if "__version__" in module.members:
        module.members["__version__"].docstring = "The version of this package."
    for member in module.members.values():
        if isinstance(member, pdoc.doc.Class):
            member.own_members = [each for each in member.members.values() if _is_shown(each)]
            for each in member.own_members:
                own = vars(member.obj).get("__init__")
                inherited = each.name == "__init__" and not (own and own.__doc__)
                each.docstring = "" if inherited else prepared(each.docstring)
        elif isinstance(value := getattr(found, member.name, None), Cell):
            member.docstring, member.default_value = value.__doc__ or "", value
        member.docstring = prepared(member.docstring)
    module.docstring = prepared(module.docstring)
    return module


def _is_shown(member: pdoc.doc.Doc) -> bool:
    ours = member.taken_from[0].startswith("recollect")
    return ours and bool(member.docstring or not isinstance(member, pdoc.doc.Variable))


if __name__ == "__main__":
    print(main())
