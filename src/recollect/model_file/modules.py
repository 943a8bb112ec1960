"""Modules as the header and tensors of a model file, and back."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from recollect.errors import ModelFileError
from recollect.model_file.container import read_model, require_kind, write_model
from recollect.model_file.kept import check_kept

if TYPE_CHECKING:
    from torch import nn

    from recollect.cells import Cell


def save(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a layer of ours, or a ``torch.nn.Sequential`` of ours and ``torch.nn.Linear``.

    All arguments of the layers, weights, dtypes, frozen parameters and the train or eval mode are kept; the
    device, gradients, compilation and what hooks do to a ``state_dict`` are not. A cell of your own travels as
    its graph. (A recurrent layer returns a tuple, so a ``Sequential`` that holds one is a container here: the
    code that calls its layers stays yours.) A file has no code in it, so what else was put on a layer is
    refused where it takes part in what the layer computes (parametrisations, pruning, buffers, further
    modules, a ``forward`` of its own), and named in a warning where it need not (hooks of calls, attributes).

    Warns:
        UserWarning: names the hooks and attributes that are left out.

    Raises:
        ModelFileError: another kind of module, weights that two layers share, or something that a file cannot keep.
        OSError: ``path`` cannot be written.
    """
    header, tensors = pack_module(module)
    write_model(path, {"kind": "module", **header}, tensors)


def load(path: str | os.PathLike[str]) -> nn.Module:
    """Load what ``recollect.save`` wrote, on the CPU and in the mode (train or eval) it was saved in.

    Every size in the header is checked against the tensors before a layer is filled.

    Raises:
        ModelFileError: the file is truncated, altered, foreign, of a newer format, or of another kind.
        OSError: there is no such file, or it cannot be read.
    """
    header, tensors = read_model(path)
    require_kind(header, "module", path)
    return unpack_module(header, tensors)


def pack_module(module: nn.Module) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header keys ``module``, ``frozen`` and ``bfloat16``, and the tensors, of a model file.

    Raises:
        ModelFileError: a kind of module that ``save`` does not take, weights that two layers share, or something
            that a file cannot keep.
    """
    import torch

    parameters = dict(module.named_parameters(remove_duplicate=False))
    if len({id(parameter) for parameter in parameters.values()}) < len(parameters):
        raise ModelFileError(
            "two layers share a weight, and a file would part them",
            given=f"{type(module).__name__} with {len(parameters)} parameter names",
            expected="a weight of its own for each name",
        )
    try:
        spec = _describe(module, "the module")
        with torch.device("meta"):
            made = _build(spec)
        check_kept(module, made)
        given = module.state_dict()
        _check_tensors(made.state_dict(), given)
    except ModelFileError:
        raise
    except (TypeError, ValueError) as error:
        raise ModelFileError(
            "the module's weights are no longer those it was made with, so it could not be loaded again",
            given=str(error),
        ) from error
    state = {name: tensor.detach().cpu() for name, tensor in given.items()}
    header = {
        "module": spec,
        "frozen": sorted(name for name, parameter in parameters.items() if not parameter.requires_grad),
        "bfloat16": sorted(name for name, tensor in state.items() if tensor.dtype == torch.bfloat16),
    }
    return header, {
        name: (tensor.view(torch.int16) if name in header["bfloat16"] else tensor).numpy()
        for name, tensor in state.items()
    }


def unpack_module(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """Build the module that ``pack_module`` described, on the CPU; reads only those three header keys.

    Raises:
        ModelFileError: the header describes no module of ours, or its sizes do not fit the tensors.
    """
    import torch

    try:
        # Nothing is allocated on the meta device, whatever sizes the header claims.
        with torch.device("meta"):
            module = _build(header["module"], "", tensors)
        loaded = {name: torch.from_numpy(array) for name, array in tensors.items()}
        for name in header["bfloat16"]:
            if loaded[name].dtype != torch.int16:
                raise ValueError(f"{name} holds {loaded[name].dtype}, not the bits of bfloat16")
            loaded[name] = loaded[name].view(torch.bfloat16)
        _check_tensors(module.state_dict(), loaded)
        module.load_state_dict(loaded, assign=True)
        for name in header["frozen"]:
            module.get_parameter(name).requires_grad_(False)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            "the file's header does not describe a module of ours", given=f"{type(error).__name__}: {error}"
        ) from error
    return module


# The constructor arguments that a file keeps for each kind of layer, and their types.
_RECURRENT: dict[str, type | tuple[type, ...]] = {
    "input_size": int,
    "hidden_size": int,
    "num_layers": int,
    "bias": bool,
    "batch_first": bool,
    "dropout": float,
    "bidirectional": bool,
    "recurrent_dropout": float,
    "zoneout": list,
    "learned_initial_state": bool,
    "checkpoint": (int, str, NoneType),
}
_ARGUMENTS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "RNN": {**_RECURRENT, "nonlinearity": str},
    "LSTM": {**_RECURRENT, "proj_size": int},
    "GRU": _RECURRENT,
    "Recurrent": {**_RECURRENT, "proj_size": int},
    "Linear": {"in_features": int, "out_features": int, "bias": bool},
}


# Files of the first version do not say these; the layers then have what their constructors say.
_MAY_BE_UNSAID = {"recurrent_dropout", "zoneout", "learned_initial_state", "proj_size", "checkpoint"}


def check_arguments(kind: str, values: Mapping[str, Any]) -> None:
    """Check the names and exact types of a layer's arguments in a header, whatever their values.

    Raises:
        KeyError: there is no such kind of layer.
        ValueError: they are not those of this kind.
    """
    expected = {key: types for key, types in _ARGUMENTS[kind].items() if key in values or key not in _MAY_BE_UNSAID}
    exact = values.keys() == expected.keys() and all(
        type(value) in (types if isinstance(types := expected[key], tuple) else (types,))
        for key, value in values.items()
    )
    if not exact:
        raise ValueError(f"the arguments of {kind} are {', '.join(expected)}, not {values}")


# Every tensor and layer has its whole path in its name.
_LONGEST_PATH = 1_000


def below(prefix: str, name: str) -> str:
    """The prefix of the names of all that is in a layer of a ``Sequential``.

    Raises:
        ValueError: it is longer than a path can be.
    """
    if len(prefix) + len(name) > _LONGEST_PATH:
        raise ValueError(f"the layers nest too deep, or their names are too long: {prefix[:100]}...")
    return f"{prefix}{name}."


def _layer_classes() -> dict[str, type[nn.Module]]:
    import torch

    from recollect import nn

    return {
        "RNN": nn.RNN,
        "LSTM": nn.LSTM,
        "GRU": nn.GRU,
        "Recurrent": nn.Recurrent,
        "Linear": torch.nn.Linear,
    }


def _describe(module: nn.Module | None, place: str) -> dict[str, Any]:
    """The constructor call of a module, as JSON. Exact types only: a subclass may compute anything."""
    import torch
    from torch.nn.utils import parametrize

    if module is None:
        raise ModelFileError(f"{place} is missing", given="None", expected="a layer", remedy="leave it out")
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # pyright: ignore[reportArgumentType, reportCallIssue]
        raise ModelFileError(
            f"{place} computes weights from others, with code that a file cannot keep",
            given=f"parametrizations of {names}",
            expected="weights alone",
            remedy="torch.nn.utils.parametrize.remove_parametrizations(layer, name), which keeps what they compute",
        )
    spec: dict[str, Any] = {"training": module.training}
    if type(module) is torch.nn.Sequential:
        # Not by named_children, which leaves out what is there twice.
        layers = [[name, _describe(layer, f"layer {name!r}")] for name, layer in module._modules.items()]
        return {**spec, "type": "Sequential", "layers": layers}
    own = type(module)
    if own.__module__ == "recollect.nn.torch_subclasses":
        own = own.__bases__[0]  # the same layer, whatever else it is an instance of
    for name, kind in _layer_classes().items():
        if own is kind:
            values = {key: _argument(module, key, types) for key, types in _ARGUMENTS[name].items()}
            cell = getattr(module, "cell", None)
            return {
                **spec,
                "type": name,
                **values,
                **({} if cell is None else {"cell": _describe_cell(cell)}),
            }
    theirs = type(module) in (torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU)
    raise ModelFileError(
        f"{place} cannot be saved",
        given=f"{type(module).__module__}.{type(module).__qualname__}",
        expected="recollect.nn.RNN, LSTM, GRU, Recurrent, torch.nn.Linear, or a torch.nn.Sequential of these",
        remedy="recollect.convert(module) first" if theirs else "save its recurrent layers one by one",
    )


def _argument(module: nn.Module, key: str, types: type | tuple[type, ...]) -> Any:
    value = getattr(module, key)
    if key == "bias":  # a Linear's is a tensor or None, ours a truth value
        return value is not None and value is not False
    return value if isinstance(types, tuple) else types(value)


def _describe_cell(cell: Cell) -> dict[str, str]:
    names = {key: " ".join(getattr(cell, key)) for key in ("gates", "states", "vectors")}
    return {"name": cell.name, **names, "graph": cell.graph.to_json()}


def _build(spec: dict[str, Any], prefix: str = "", names: Collection[str] | None = None) -> nn.Module:
    """The module that a description says, if its layers have their weights among the names of tensors, where given."""
    import torch

    values = dict(spec)
    kind, training = values.pop("type"), values.pop("training")
    if type(training) is not bool:
        raise ValueError(f"the mode of {prefix or 'the module'} is {training!r}, neither true nor false")
    if kind == "Sequential":
        module, layers = torch.nn.Sequential(), values.pop("layers")
        if values:
            raise ValueError(f"a Sequential has layers, not {sorted(values)}")
        for name, layer in layers:
            if name in module._modules:
                raise ValueError(f"two layers are called {prefix}{name}")
            module.add_module(name, _build(layer, below(prefix, name), names))
    else:
        cell = values.pop("cell", None)
        check_arguments(kind, values)
        # Before anything is made: what a header claims takes no longer than the tensors that it came with.
        weights = ["weight"] if kind == "Linear" else (f"weight_ih_l{layer}" for layer in range(values["num_layers"]))
        if names is not None:
            for name in weights:
                if f"{prefix}{name}" not in names:
                    raise ValueError(f"there is no tensor {prefix}{name}")
        arguments = (_build_cell(cell),) if kind == "Recurrent" else ()
        module = _layer_classes()[kind](*arguments, **values)
    for part in (module,) if kind == "Sequential" else module.modules():
        part.training = training
    return module


def _build_cell(spec: dict[str, str]) -> Cell:
    from recollect import cells

    if not all(type(value) is str for value in spec.values()):
        raise ValueError(f"the cell's declaration is not text: {spec}")
    cell = cells.Cell.from_graph(**spec)
    ours = getattr(cells, cell.name) if cell.name in cells.__all__ else None
    return ours if ours is not None and _describe_cell(ours) == spec else cell


def _check_tensors(expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare names and shapes before any layer is filled, and refuse dtypes that cannot be a layer's weights."""
    import torch

    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or extra:
        raise ValueError(f"tensors missing: {missing}, tensors without a layer: {extra}")
    dtypes: dict[str, set[Any]] = {}
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, its layer {list(expected[name].shape)}")
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(f"{name} holds {tensor.dtype}, which is no dtype of weights")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise ValueError(f"{name} holds no numbers that could be written: {tensor.layout} on {tensor.device}")
        dtypes.setdefault(name.rpartition(".")[0], set()).add(tensor.dtype)
    for layer, several in dtypes.items():
        if len(several) > 1:
            raise ValueError(
                f"the weights of {layer or 'the layer'} are of several dtypes: {sorted(map(str, several))}"
            )
