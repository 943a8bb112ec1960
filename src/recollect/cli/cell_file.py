"""A cell out of a Python file of the user's."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recollect.errors import CellError, InputError

if TYPE_CHECKING:
    from recollect.cells import Cell


def cell_from_file(path: Path, name: str = "") -> Cell:
    """Run a file as a module, as ``python FILE`` would find its imports, and take a cell from it.

    Args:
        path: ends with ``.py``.
        name: of the cell in it; "" takes the only one.

    Raises:
        CellError: a cell in it cannot be used.
        InputError: there is no such file or cell, or the file fails.
    """
    from recollect.cells import Cell

    if not path.is_file():
        raise InputError(
            f"there is no file {path}",
            expected="FILE.py:NAME, where NAME is what recollect.cell decorates in that file",
        )
    spec = importlib.util.spec_from_file_location(f"_described_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except CellError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} could not be run", given=f"{type(error).__name__}: {error}") from error
    finally:
        del sys.modules[spec.name]
        sys.path.remove(folder)
    found = {key: value for key, value in vars(module).items() if isinstance(value, Cell)}
    if name in found:
        return found[name]
    if not name and len(found) == 1:
        return next(iter(found.values()))
    near = difflib.get_close_matches(name, list(found), 1)
    raise InputError(
        f"{path} has no cell {name!r}" if name else f"{path} has {len(found)} cells",
        expected=f"one of {', '.join(found)}" if found else "a function decorated with recollect.cell",
        remedy=f"did you mean {path}:{near[0]}?" if near else f"say {path}:NAME" if found and not name else None,
    )
