"""Whether a file would keep all of a module: what it cannot keep is refused, or said, before anything is written.

A module is compared with the one that its description makes. What decides the results of a call must be the same in
both; of the rest, which a file leaves out, the caller is told.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from recollect.errors import ModelFileError

if TYPE_CHECKING:
    from torch import nn

# Of every module, and how it is called rather than what it computes.
_HOW = {"training", "_compiled_call_impl"}


def check_kept(module: nn.Module, made: nn.Module) -> None:
    """Compare a module with what would be loaded in its place.

    Warns:
        UserWarning: of hooks and attributes that a file does not keep.

    Raises:
        ModelFileError: the module would compute something else.
    """
    lost: list[str] = []
    parts = zip(module.named_modules(remove_duplicate=False), made.named_modules(remove_duplicate=False), strict=False)
    for (path, given), (_, fresh) in parts:
        place = f"layer {path!r}" if path else "the module"
        _check_layer(place, given, fresh)
        lost += [f"{name} of {place}" for name in _left_out(given, fresh)]
    if lost:
        warnings.warn(
            f"a file keeps layers and their weights, but not: {', '.join(lost)}; put them on the loaded module again",
            stacklevel=4,
        )


def _check_layer(place: str, given: nn.Module, fresh: nn.Module) -> None:
    """Refuse a layer with something in it that takes part in its calls and that a file has no place for."""
    values, expected = vars(given), vars(fresh)
    for name in expected["_parameters"]:
        if name not in values["_parameters"] and name in values:
            _refuse(
                place, f"{name} is computed from {_like(name, values['_parameters'])}",
                "make it a weight first, with torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove",
            )  # fmt: skip
    if given._modules.keys() != fresh._modules.keys():
        names = sorted(given._modules.keys() ^ fresh._modules.keys())
        _refuse(place, f"modules inside it: {', '.join(names)}", "save them on their own")
    if values["_buffers"]:
        _refuse(place, f"buffers: {', '.join(values['_buffers'])}", "keep them in a file of their own")
    for name in _added(given, fresh):
        if hasattr(type(given), name) and _content(values[name]) != _content(getattr(type(given), name)):
            _refuse(place, f"{name} was replaced on this very module", f"del module.{name}, or put it into a hook")
    for name, value in expected.items():
        if not name.startswith("_") and name not in _HOW and _content(values.get(name)) != _content(value):
            _refuse(
                place, f"{name} = {values.get(name)!r}, where its layer has {value!r}",
                "make a new layer with other arguments, and load_state_dict",
            )  # fmt: skip


def _left_out(given: nn.Module, fresh: nn.Module) -> Iterator[str]:
    """What a file leaves out and a call does not need."""
    for name, value in vars(given).items():
        # Those of calls; a hook with options is listed elsewhere once more (`_forward_hooks_with_kwargs`).
        if name.endswith("_hooks") and "state_dict" not in name and value and not vars(fresh).get(name):
            yield f"the {name.strip('_').replace('_', ' ')}"
    for name in _added(given, fresh):
        if not hasattr(type(given), name):  # else it is what the class has anyway
            yield f"the attribute {name}"
    for name, parameter in given.named_parameters(recurse=False):
        for attribute in vars(parameter):
            yield f"the attribute {name}.{attribute}"
        if getattr(parameter, "_backward_hooks", None):
            yield f"the hooks of {name}"


def _added(given: nn.Module, fresh: nn.Module) -> list[str]:
    return [name for name in vars(given) if name not in vars(fresh) and name not in _HOW]


def _content(value: Any) -> Any:
    value = getattr(value, "text", value)  # of a cell
    return list(value) if isinstance(value, tuple) else value


def _like(name: str, parameters: Any) -> str:
    return " and ".join(other for other in parameters if other.startswith(f"{name}_")) or "something else"


def _refuse(place: str, given: str, remedy: str) -> NoReturn:
    raise ModelFileError(
        f"{place} has what a file cannot keep, so it would compute something else when it is loaded",
        given=given,
        expected="what its constructor makes, and weights",
        remedy=remedy,
    )
