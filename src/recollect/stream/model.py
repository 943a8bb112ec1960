"""A model file as a chain of layers in NumPy, to be run step by step; needs no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recollect.errors import InputError, ModelFileError, NotYetError
from recollect.graph.declaration import check_graph, declared_names
from recollect.graph.graph import Builder, Graph
from recollect.model_file.container import read_model, require_kind
from recollect.model_file.modules import below, check_arguments

_DTYPES = ("float32", "float64")


def _linear() -> Graph:
    builder = Builder()
    return builder.build({"y": builder.leaf("inp.y")})


@dataclass(frozen=True)
class Cell:
    """A cell as far as kernels know it: its declaration and its graph."""

    gates: tuple[str, ...]
    states: tuple[str, ...]
    vectors: tuple[str, ...]
    graph: Graph


# A linear layer is the cell ``y = x W + b``, which remembers nothing: the same kernel serves.
LINEAR = Cell(("y",), ("y",), (), _linear())


@dataclass(frozen=True)
class Layer:
    """One layer of a chain.

    Attributes:
        cell: its time step.
        inputs, hidden: I and H.
        weights: ``w_ih`` [G * H, I] and, where there are such, ``w_hh`` [G * H, H], ``b_ih`` and ``b_hh`` [G * H] and
            ``vector.<name>`` [H].
        initial: what each state starts from, [H] each.
        zoneout: how much each state keeps of what it was, on average; empty where nothing.
    """

    cell: Cell
    inputs: int
    hidden: int
    weights: Mapping[str, np.ndarray]
    initial: tuple[np.ndarray, ...]
    zoneout: tuple[float, ...] = ()

    @property
    def remembers(self) -> bool:
        """Whether anything of one step reaches the next."""
        return self.cell is not LINEAR


@dataclass(frozen=True)
class Model:
    """Layers on top of each other.

    Attributes:
        layers: the lowest first; each takes the output of the one before.
        dtype: of all numbers.
        fingerprint: SHA-256 of all that decides what the model computes, 32 bytes.
    """

    layers: tuple[Layer, ...]
    dtype: np.dtype
    fingerprint: bytes


def read(path: str | os.PathLike[str]) -> Model:
    """Read a model that ``recollect.save`` wrote.

    Raises:
        ModelFileError: the file is truncated, altered, foreign, of a newer format or of another kind, or its layers
            do not fit its tensors or each other.
        InputError: it holds a model that cannot be run step by step, such as a forecaster's, or not in its dtype.
        NotYetError: it holds a layer with a projection.
        OSError: there is no such file, or it cannot be read.
    """
    header, tensors = read_model(path)
    if header["kind"] == "forecaster":
        raise InputError(
            "a forecaster cannot run step by step: each forecast scales its whole context anew, by that context's own "
            "mean and spread, so its network has no state that a step could go on from",
            given=Path(path).name, expected="a file that recollect.save wrote",
            remedy="recollect.Forecaster.load(path).predict(values), with the values up to now",
        )  # fmt: skip
    require_kind(header, "module", path)
    try:
        return _model(header, tensors)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ModelFileError | InputError):
            raise
        raise ModelFileError(
            "the file's header does not describe a model of ours", given=f"{type(error).__name__}: {error}"
        ) from error


def _model(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Model:
    if not tensors:
        raise InputError("the model has no layers", given="an empty Sequential", expected="at least one layer")
    rounded = set(header["bfloat16"])
    found = sorted({"bfloat16" if name in rounded else tensors[name].dtype.name for name in tensors})
    if len(found) != 1 or found[0] not in _DTYPES:
        raise InputError(
            "a stepper has numbers of one dtype", given=", ".join(found), expected=" or ".join(_DTYPES),
            remedy="save module.float()",
        )  # fmt: skip
    left = dict(tensors)
    layers = tuple(_layers(header["module"], "", left, len(tensors)))
    if left:
        raise ValueError(f"tensors without a layer: {sorted(left)}")
    for lower, upper in pairwise(layers):
        if lower.hidden != upper.inputs:
            raise InputError(
                "the layers do not follow on each other",
                given=f"{lower.hidden} features, then a layer for {upper.inputs}",
                expected="each layer takes what the one before it gives",
                remedy="save the part of the model that runs in this order",
            )  # fmt: skip
    dtype = np.dtype(found[0])
    return Model(layers, dtype, _fingerprint(layers, dtype))


def _layers(spec: Mapping[str, Any], prefix: str, left: dict[str, np.ndarray], most: int) -> Iterator[Layer]:
    """The layers that a header's tree describes, in order; takes their tensors out of ``left``."""
    values = dict(spec)
    kind, _ = values.pop("type"), values.pop("training")
    if kind == "Sequential":
        for name, layer in values.pop("layers"):
            yield from _layers(layer, below(prefix, name), left, most)
        return
    cell = values.pop("cell", None)
    check_arguments(kind, values)

    def take(name: str, *shape: int) -> np.ndarray:
        array = left.pop(prefix + name)
        if not array.size or array.shape != shape:
            raise ValueError(f"{prefix}{name} has shape {list(array.shape)}, its layer {list(shape)}")
        return array

    if kind == "Linear":
        inputs, hidden = values["in_features"], values["out_features"]
        weights = {"w_ih": take("weight", hidden, inputs)}
        if values["bias"]:
            weights["b_ih"] = take("bias", hidden)
        yield Layer(LINEAR, inputs, hidden, weights, (np.zeros(hidden, weights["w_ih"].dtype),))
        return
    _check_steps(values, prefix)
    if not 0 < values["num_layers"] <= most:
        raise ValueError(f"{values['num_layers']} layers but only {most} tensors")
    found, hidden = _cell(cell), values["hidden_size"]
    zoneout = _zoneout(values["zoneout"], len(found.states)) if "zoneout" in values else ()
    gates = len(found.gates) * hidden
    for place in range(values["num_layers"]):
        inputs = hidden if place else values["input_size"]
        weights = {
            "w_ih": take(f"weight_ih_l{place}", gates, inputs),
            "w_hh": take(f"weight_hh_l{place}", gates, hidden),
        }
        if values["bias"]:
            weights |= {f"b_{kind}": take(f"bias_{kind}_l{place}", gates) for kind in ("ih", "hh")}
        weights |= {f"vector.{name}": take(f"vector_{name}_l{place}", hidden) for name in found.vectors}
        if values.get("learned_initial_state", False):
            initial = tuple(take(f"initial_{state}_l{place}", hidden) for state in found.states)
        else:
            initial = tuple(np.zeros(hidden, weights["w_ih"].dtype) for _ in found.states)
        yield Layer(found, inputs, hidden, weights, initial, zoneout)


def _check_steps(values: Mapping[str, Any], prefix: str) -> None:
    place = f"layer {prefix.rstrip('.')!r}" if prefix else "the layer"
    if values["bidirectional"]:
        raise InputError(
            f"{place} cannot run step by step: its second direction begins at the end of the sequence",
            given="bidirectional=True", expected="layers that read forward in time",
            remedy="train the model with bidirectional=False, or run the module on whole sequences",
        )  # fmt: skip
    if values.get("proj_size", 0):
        raise NotYetError(
            f"{place} projects its output, which a stepper does not do yet", given=f"proj_size={values['proj_size']}",
            expected="proj_size=0", remedy="call the module with T = 1 and pass its state on",
        )  # fmt: skip


def _cell(spec: Mapping[str, str]) -> Cell:
    if spec.keys() != {"name", "gates", "states", "vectors", "graph"}:
        raise ValueError(f"the cell's declaration has other keys: {sorted(spec)}")
    declared = declared_names(*(spec[key] for key in ("name", "gates", "states", "vectors")))
    graph = Graph.from_json(spec["graph"])
    check_graph(spec["name"], *declared, graph)
    return Cell(*declared, graph)


def _zoneout(given: list[float], states: int) -> tuple[float, ...]:
    if len(given) != states or not all(type(each) is float and 0 <= each <= 1 for each in given):
        raise ValueError(f"zoneout is a probability for each state, not {given}")
    return tuple(given) if any(given) else ()


def _fingerprint(layers: tuple[Layer, ...], dtype: np.dtype) -> bytes:
    digest = hashlib.sha256(dtype.name.encode())
    for layer in layers:
        cell = layer.cell
        content = (cell.gates, cell.states, cell.vectors, cell.graph.key, layer.inputs, layer.hidden, layer.zoneout)
        digest.update(f"{content}{list(layer.weights)}".encode())
        for array in (*layer.weights.values(), *layer.initial):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.digest()
