"""Turn torch.nn's recurrent layers and cells into ours, in place, without touching what they have learned."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from recollect.errors import InputError
from recollect.nn import torch_cells, torch_compat
from recollect.nn.recurrent import Recurrent

_OURS: dict[type, Any] = {
    nn.RNN: torch_compat.RNN, nn.LSTM: torch_compat.LSTM, nn.GRU: torch_compat.GRU,
    nn.RNNCell: torch_cells.RNNCell, nn.LSTMCell: torch_cells.LSTMCell, nn.GRUCell: torch_cells.GRUCell,
}  # fmt: skip
# What somebody may set on a layer in place of the class's own, as neither torch.nn's results nor ours hang on it.
_WITHOUT_EFFECT = {"flatten_parameters", "_compiled_call_impl"}


def convert(module: nn.Module, *, subclass: bool = False) -> nn.Module:
    """Turn every ``torch.nn.RNN``, ``LSTM``, ``GRU`` and every cell of these in a model into ours, in place.

    A layer stays the very object that it was and changes its class, as with ``torch.nn.utils.parametrize``. So it keeps
    its Parameters (a live optimiser goes on), buffers, submodules, attributes, hooks, parametrisations, weight norm,
    pruning, mode and device, and whatever else refers to it. ``convert(copy.copy(layer))`` leaves a layer as it is and
    returns another with the same Parameters. What cannot be taken is left alone, with a warning that says which and
    why: subclasses of torch's layers, layers whose ``forward`` or another method was replaced, and the like.

    Args:
        module: any module.
        subclass: take layers that are also instances of torch.nn's classes, for code that asks for these. torch.compile
            breaks its graph at them. ``torch.nn.RNNBase`` and the cells' classes are ours' bases in either case.

    Returns:
        ``module``.

    Raises:
        InputError: not a module.
    """
    if not isinstance(module, nn.Module):
        raise InputError("there is no model to convert", given=type(module).__name__, expected="a torch.nn.Module")
    converted: dict[int, type] = {}
    for path, layer in list(module.named_modules()):
        kind = type_before_parametrizations(layer)
        if kind in _OURS:
            obstacle = _obstacle(layer, kind)
            if obstacle is None:
                _become(layer, kind)
                converted[id(layer)] = kind
            else:
                _warn_of(path or "the layer", layer, obstacle)
        elif _is_torchs(layer):
            _warn_of(path or "the layer", layer, "its class may do anything")
        if subclass:
            _derive_from_torchs(layer)
    registered = {id(layer) for layer in module.modules()}
    for path, value in _reached(module):
        if isinstance(value, nn.Module):
            for name, layer in value.named_modules():
                if id(layer) not in registered and _is_torchs(layer):
                    _warn_of(f"{path}.{name}" if name else path, layer, "it is not registered as a submodule")
        elif isinstance(value, types.MethodType) and id(value.__self__) in converted:
            name = value.__name__
            if getattr(type(value.__self__), name, None) is not value.__func__:
                reason = f"a method bound to a layer that is ours now still is torch.nn's; call the layer's own {name}"
                warnings.warn(f"recollect.convert left {path} as it is: {reason}", stacklevel=2)
    return module


def _warn_of(path: str, layer: nn.Module, reason: str) -> None:
    what = f"{path}, a {type(layer).__name__}, as it is: {reason}"
    warnings.warn(f"recollect.convert left {what}", stacklevel=3)


def _is_torchs(layer: nn.Module) -> bool:
    ours = isinstance(layer, (Recurrent, torch_cells.TorchCell))
    return isinstance(layer, (nn.RNNBase, nn.RNNCellBase)) and not ours


def _blank(layer: Any, kind: type) -> nn.Module:
    """A layer of ours with the sizes of torch.nn's, but no memory for its parameters; InputError if there is none."""
    names = ["input_size", "hidden_size", "bias"]
    if issubclass(kind, nn.RNNBase):
        names += ["num_layers", "batch_first", "bidirectional", *(["proj_size"] if kind is nn.LSTM else [])]
    arguments = {name: getattr(layer, name) for name in names}
    if kind is nn.RNN:
        arguments["nonlinearity"] = layer.mode.removeprefix("RNN_").lower()  # it is what torch.nn's layer goes by
    if kind is nn.RNNCell:
        arguments["nonlinearity"] = layer.nonlinearity
    return _OURS[kind](**arguments, device="meta")


def _obstacle(layer: Any, kind: Any) -> str | None:
    """Why a layer of torch.nn cannot become one of ours and compute the same, or None if it can."""
    ours = _OURS[kind]
    try:
        blank = _blank(layer, kind)
    except InputError as error:
        return str(error)
    added = vars(layer).keys() - vars(kind(1, 1, device="meta")).keys() - _WITHOUT_EFFECT
    for name in sorted(added):
        if hasattr(kind, name):
            return f"its {name} was replaced"
        if name in vars(blank) or hasattr(ours, name):
            return f"its attribute {name!r} has a meaning of its own in a layer of ours; rename it first"
    for name, wanted in blank.named_parameters():
        weight = layer._parameters.get(name, vars(layer).get(name))
        if is_parametrized(layer, name):
            continue
        if not isinstance(weight, torch.Tensor):
            return f"its {name} is missing"
        if weight.shape != wanted.shape or weight.is_complex():
            return f"its {name} is {weight.dtype} {tuple(weight.shape)}, where real {tuple(wanted.shape)} is expected"
    if issubclass(kind, nn.RNNBase) and not is_parametrized(layer):
        layer._update_flat_weights()  # as its forward does first
        current = [getattr(layer, name) for name in layer._flat_weights_names]
        if any(listed is not weight for listed, weight in zip(layer._flat_weights, current, strict=True)):
            return "its _flat_weights, with which torch.nn computes, are others than its attributes"
    return None


def _become(layer: nn.Module, kind: type) -> None:
    own = vars(layer)
    for name in ("_flat_weights", "_flat_weight_refs", "_all_weights"):  # ours derive them
        own.pop(name, None)
    own.update({name: value for name, value in vars(_blank(layer, kind)).items() if name not in own})
    _set_class(layer, kind, _OURS[kind])


def _set_class(layer: Any, old: type, new: type) -> None:
    """Exchange the class of a layer, or that which torch.nn.utils.parametrize has derived from it."""
    current = type(layer)
    if current is old:
        layer.__class__ = new
    else:
        members = {name: value for name, value in vars(current).items() if name not in ("__dict__", "__weakref__")}
        layer.__class__ = type(current.__name__, (new,), members)


def _derive_from_torchs(layer: nn.Module) -> None:
    from recollect.nn import torch_subclasses as derived  # here, as it imports the compiler

    kind = type_before_parametrizations(layer)
    for ours, new in (
        (torch_compat.RNN, derived.RNN),
        (torch_compat.LSTM, derived.LSTM),
        (torch_compat.GRU, derived.GRU),
    ):
        if kind is ours:
            _set_class(layer, ours, new)


def _reached(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a model reaches beside its submodules, with its path: through attributes, containers, and partial calls."""
    seen: set[int] = set()

    def within(path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if id(value) in seen:
            return
        if isinstance(value, dict):
            parts = [(f"{path}[{key!r}]", part) for key, part in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts = [(f"{path}[{place}]", part) for place, part in enumerate(value)]
        elif isinstance(value, functools.partial):
            parts = [(path, part) for part in (value.func, *value.args, *value.keywords.values())]
        else:
            yield path, value
            return
        seen.add(id(value))
        for part_path, part in parts:
            yield from within(part_path, part)

    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                yield from within(f"{path}.{name}" if path else name, value)
